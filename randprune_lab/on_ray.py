"""Candidates, and whole runs, in other processes and on other machines: Ray, the extra ``[ray]``.

A worker does with a candidate what ``executors.train_candidates`` does with it here, so its numbers are the same bit
for bit at equal ``threads``, on machines of one kind. Data, teacher and network travel to each worker once a run,
weights once a stage. Whatever a worker or a machine that is lost was doing is done again elsewhere.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from randprune_lab.cluster import RETRIES, Stop, as_completed, connected, first_done, import_ray, last_line, task_of
from randprune_lab.config import OBJECT, RunConfig
from randprune_lab.distill import Teacher, features
from randprune_lab.executors import State, Train, Trained, train_candidates
from randprune_lab.masks import Masks, pack, unpack
from randprune_lab.methods import hooks_of
from randprune_lab.splits import Batch, Task
from randprune_lab.training import Session, start_accelerator, stopping_when, using_threads

Key = TypeVar("Key")
Result = TypeVar("Result")


@contextlib.contextmanager
def executor(session: Session) -> Iterator[Train]:
    """Where a run's candidates are trained: here; or on Ray, which is connected, or started, inside.

    A run that compares nothing has nothing to give away.

    Raises:
        ValueError: as ``check``, which comes first and looks closer; or a network of one's own cannot be sent.
    """
    config = session.config
    if config.executor != "ray" or not config.compares:
        yield train_candidates
        return
    connection = connected(config.ray_address, cpus=config.threads, gpus=config.ray_gpus, check_versions=False)
    with connection as ray, stopping(ray) as stop:
        crew = _Crew(ray, config, stop)
        if config.model == OBJECT or ":" in config.model:  # it may be of a module that only this machine has
            crew.check_model(session)
        yield crew.train_candidates


def check(config: RunConfig, device: torch.device) -> None:
    """Refuse a run that could not give its candidates to Ray, before anything is trained.

    Raises:
        ValueError: as ``connected``; or the candidates would be trained on another kind of device than the rest.
    """
    if config.executor != "ray" or not config.compares:
        return
    if (device.type == "cuda") != (config.ray_gpus > 0):
        fix = "Pass ray_gpus=1 (0.5: two share one)" if device.type == "cuda" else "Pass ray_gpus=0"
        raise ValueError(
            f"ray_gpus = {config.ray_gpus:g}, and the run is on {device.type}: candidates must be trained on the same "
            f"kind of device as the rest. {fix}, or another device."
        )
    ray = import_ray()
    if config.ray_address or ray.is_initialized():
        with connected(config.ray_address, cpus=config.threads, gpus=config.ray_gpus):
            return
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if config.threads > cpus or config.ray_gpus > gpus:
        raise ValueError(
            f"threads = {config.threads}, ray_gpus = {config.ray_gpus:g}: this machine, where Ray is started, has "
            f"{cpus} CPUs and {gpus} GPUs. Ask for less, or pass the ray_address of a cluster that has more."
        )


class Lost(ValueError):  # noqa: N818, what happened, not a fault of the program
    """Work that Ray did not get done, though it tried again; the text says why, and what helps."""


def in_cluster(
    work: Callable[[RunConfig], Result],
    jobs: Mapping[Key, RunConfig],
    tell: Callable[[int, int], object] = lambda *_: None,
    *,
    address: str = "",
    gpus: float = 0.0,
) -> Iterator[tuple[Key, Result | Lost]]:
    """What ``work`` makes of each job, on Ray: each key with its result, in the order in which they come.

    A job that was lost too often has a ``Lost`` as its result, and the others go on; what one raises is raised here.
    ``tell`` hears how many are done, of how many. A job takes ``gpus`` GPUs, and as many CPUs as it has ``threads``;
    with 0 GPUs its device "auto" is the CPU. One that would itself give its candidates to Ray trains them where it is,
    with the same results.

    Raises:
        ValueError: as ``connected``; or a job wants a GPU, and ``gpus`` is 0.
    """
    jobs = {key: _as_a_job(config, gpus) for key, config in jobs.items()}
    threads = {config.threads for config in jobs.values()}
    with connected(address, cpus=max(threads, default=1), gpus=gpus) as ray, stopping(ray) as stop:
        tasks = {cpus: task_of(ray, _do, cpus, gpus) for cpus in threads}
        sent = ray.put(work)  # once

        def submit(key: Key) -> Any:
            return tasks[jobs[key].threads].remote(sent, jobs[key], stop)

        done = as_completed(ray, submit, jobs, cpus=lambda key: jobs[key].threads, gpus=gpus)
        for number, (key, ref) in enumerate(done, start=1):
            result: Result | Lost
            try:
                result = _result(ray, ref)
            except Lost as error:
                result = error
            tell(number, len(jobs))
            yield key, result


def _as_a_job(config: RunConfig, gpus: float) -> RunConfig:
    """What a run is where it is one of many: it uses what Ray has given it, and asks Ray for nothing more."""
    if config.device == "cuda" and not gpus:
        raise ValueError(
            "device = 'cuda' with ray_gpus = 0: Ray would give each run no GPU, and all would take the first one. Pass "
            "ray_gpus=1 (0.5: two share one), or device='auto'."
        )
    changes = {"executor": "lockstep"} if config.executor == "ray" else {}
    if config.device == "auto" and not gpus:  # a worker sees the GPUs of its machine, though they are not given to it
        changes["device"] = "cpu"
    return config.model_copy(update=changes)


def _result(ray: Any, ref: Any) -> Any:
    """What a task returns; what it raises is raised here, or, where that cannot be sent, a RuntimeError that says it.

    Raises:
        ValueError: the worker cannot read what it was sent.
        Lost: the worker was lost too often, or Ray failed otherwise.
    """
    errors = ray.exceptions
    try:
        return ray.get(ref)
    except errors.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, errors.RaySystemError):  # the work has not begun
            raise ValueError(
                f"a worker of Ray cannot read what it was sent ({last_line(cause)}). Your own model or function must "
                "come from a module that every machine can import."
            ) from error
        if isinstance(cause, errors.RayError):  # it stands for what cannot be sent
            raise RuntimeError(last_line(cause)) from error
        raise cause from error
    except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
        raise Lost(
            f"a worker of Ray was lost {RETRIES + 1} times ({str(error).strip().splitlines()[0]}). Give the machines "
            "more memory, or go on without Ray (executor='lockstep')."
        ) from error
    except errors.RayError as error:
        raise Lost(
            f"Ray gives no result ({last_line(error)}). Look at the cluster's machines, or go on without Ray "
            "(executor='lockstep')."
        ) from error


@contextlib.contextmanager
def stopping(ray: Any) -> Iterator[Stop]:
    """The sign for the tasks of what is inside: it is set when that ends, by an error or since nobody asks any more."""
    stop = Stop(ray)
    try:
        yield stop
    finally:
        stop.set()


class _Crew:
    """The workers of one run."""

    def __init__(self, ray: Any, config: RunConfig, stop: Stop) -> None:
        self.ray, self.cpus, self.gpus, self.stop = ray, config.threads, config.ray_gpus, stop
        self.task = task_of(ray, _train, self.cpus, self.gpus)
        self.shared: Any = None

    def check_model(self, session: Session) -> None:
        """A worker reads the network, and runs an example through it: before anything is trained.

        Raises:
            ValueError: it cannot.
        """
        config = session.config.model_copy(update={"device": session.accelerator.device.type})
        batch = _moved(session.task.train.inputs[torch.arange(1)], torch.device("cpu"))
        task = task_of(self.ray, _answer, self.cpus, self.gpus)
        self._result(task.remote(config, _in_main_memory(session.model), batch))

    def _result(self, ref: Any) -> Any:
        return _result(self.ray, first_done(self.ray, [ref], cpus=self.cpus, gpus=self.gpus))

    def train_candidates(
        self,
        session: Session,
        draw: Callable[[int], Masks],
        numbers: Sequence[int],
        stage: int,
        steps: range,
        *,
        states: Mapping[int, State] = MappingProxyType({}),
        keep: bool = False,
    ) -> Iterator[Trained]:
        """As ``executors.train_candidates``, each candidate in a worker; they come in the order of ``numbers``."""
        put = self.ray.put
        self.shared = self.shared or put(_parcel(session))
        fresh = not all(states.get(number) for number in numbers)
        weights = {name: tensor.cpu() for name, tensor in session.model.state_dict().items()}
        sent = [put(weights)] if fresh else []

        def submit(number: int) -> Any:
            masks = {name: pack(mask) for name, mask in draw(number).items()}
            # References within a list are not fetched before the worker asks: it may have what they stand for.
            state = states.get(number, {})
            return self.task.remote([self.shared], sent, number, masks, stage, steps, state, keep, self.stop)

        done = as_completed(self.ray, submit, numbers, cpus=lambda _: self.cpus, gpus=self.gpus)
        early: dict[int, Trained] = {}
        for number in numbers:
            while number not in early:
                other, ref = next(done)
                early[other] = _result(self.ray, ref)
            yield early.pop(number)


@dataclasses.dataclass(frozen=True)
class _Parcel:
    """What is the same for all candidates of a run, in main memory."""

    config: RunConfig
    task: Task
    model: nn.Module
    teacher: Teacher | None
    prunable: tuple[str, ...]


def _parcel(session: Session) -> _Parcel:
    teacher = session.teacher
    if teacher is not None:
        model = None if teacher.model is None else _in_main_memory(teacher.model)
        teacher = Teacher(teacher.config, model, None if teacher.logits is None else teacher.logits.cpu())
    return _Parcel(
        session.config.model_copy(update={"executor": "serial", "device": session.accelerator.device.type}),
        session.task.to(torch.device("cpu")),
        _in_main_memory(session.model),
        teacher,
        session.prunable,
    )


def _in_main_memory(model: nn.Module) -> nn.Module:
    """The network with its tensors on the CPU, to be sent; of one that is there already it shares them.

    A copy that is made first and moved then would for a moment be a second network on the GPU.
    """
    moved: dict[int, Any] = {id(tensor): tensor.detach().cpu() for tensor in model.buffers()}
    for weight in model.parameters():
        moved[id(weight)] = nn.Parameter(weight.detach().cpu(), requires_grad=weight.requires_grad)
    return copy.deepcopy(model, moved)


def _moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on another device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    return {name: tensor.to(device) for name, tensor in batch.items()}


# Below: what runs in a worker.

_known: dict[str, Session] = {}  # the run that this process works for


def _do(work: Callable[[RunConfig], Result], config: RunConfig, stop: Stop) -> Result:
    """A job; training in it ends at the next step once the sign is set."""
    with stopping_when(stop.is_set):
        return work(config)


def _answer(config: RunConfig, model: nn.Module, batch: Batch) -> None:
    """Run a network of one's own, on this worker's device."""
    device = start_accelerator(config).device
    with torch.no_grad():
        features(model.to(device).eval(), _moved(batch, device))


def _train(
    shared: list[Any],
    weights: list[Any],
    number: int,
    packed: Masks,
    stage: int,
    steps: range,
    state: State,
    keep: bool,
    stop: Stop,
) -> Trained:
    """Train one candidate; ``shared`` and ``weights`` hold one reference each, the latter none where ``state`` is."""
    ray = import_ray()
    name = shared[0].hex()
    if name not in _known:
        _known.clear()
        _known[name] = _unpacked(ray.get(shared[0]))
    session = _known[name]
    if weights:
        session.model.load_state_dict(ray.get(weights[0]))
    device = session.accelerator.device
    masks = {name: unpack(bits, session.model.get_parameter(name).shape, device) for name, bits in packed.items()}
    states = {number: state} if state else {}
    with using_threads(session.config.threads), stopping_when(stop.is_set):
        (trained,) = train_candidates(session, lambda _: masks, [number], stage, steps, states=states, keep=keep)
    return trained


def _unpacked(parcel: _Parcel) -> Session:
    """The run's session, on this worker's device."""
    config = parcel.config
    torch.use_deterministic_algorithms(config.deterministic)
    accelerator = start_accelerator(config)
    device = accelerator.device
    return Session(
        config,
        parcel.task.to(device),
        parcel.model.to(device),
        accelerator,
        teacher=parcel.teacher.to(device) if parcel.teacher else None,
        prunable=parcel.prunable,
        hooks=hooks_of(config),
    )
