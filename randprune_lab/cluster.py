"""A Ray cluster, or a Ray of one's own: found or started, looked at, and let go. What is done there: ``on_ray``."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

PATIENCE = 5.0  # seconds that a cluster has to answer
LONG_PATIENCE = 120.0  # and its machines to start a process that imports torch
LOOK = 30.0  # seconds of waiting, after which one looks whether a machine is left for what is waited for
STOP_LOOK = 0.5  # seconds between two looks of a task whether it is to stop
RETRIES = 5  # of what was lost with a worker or a machine
PACKAGES = ("randprune-lab", "torch", "transformers", "numpy", "scipy", "scikit-learn")

Key = TypeVar("Key")


@contextlib.contextmanager
def connected(address: str, *, cpus: int, gpus: float, check_versions: bool = True) -> Iterator[Any]:
    """Ray, with machines that fit: those of the cluster at ``address``; "": of one that is started here, for this.

    ``check_versions``: of its machines; once is enough. A process that is connected already stays with its cluster. The
    local one is bound to 127.0.0.1; when this is over nothing of it is left.

    Raises:
        ValueError: Ray is not installed; the cluster cannot be reached, or this process is connected to another one; no
            machine has as many CPUs and GPUs as a task asks for; a machine has another version of what results depend
            on.
    """
    ray = import_ray()
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address)
    else:
        _check_same(ray, address)
    try:
        machines = _machines(ray)
        if not _fits(machines, cpus, gpus):
            raise ValueError(
                f"threads = {cpus}, ray_gpus = {gpus:g}: no machine of the cluster has as many CPUs and GPUs "
                f"({_told(machines)}). Ask for less."
            )
        if check_versions and (address or not mine):
            _check_versions(ray, machines, cpus)
        yield ray
    finally:
        if mine:
            ray.shutdown()


def versions() -> dict[str, str]:
    """What results depend on, of this machine; of this package also which source it is, as a digest.

    Raises:
        ValueError: a package is not installed, such as this one where its files alone were copied.
    """
    try:
        found = {name: importlib.metadata.version(name) for name in PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed on {platform.node()}: all machines of a cluster must have the same "
            "version, and there it cannot be told. Run pip install (of a checkout: pip install -e .)."
        ) from error
    source = hashlib.blake2b(digest_size=4)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    found["randprune-lab"] += f" (source {source.hexdigest()})"
    return found | {"Python": platform.python_version()}


def import_ray() -> Any:
    """Ray, which asks nothing and reports nothing.

    Raises:
        ValueError: it is not installed, or broken.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; otherwise it prints that it will
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"executor = 'ray': cannot be imported ({error}). Run: pip install \"randprune-lab[ray]\""
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Connect, or start; quietly, and without taking the signals of this process."""
    settings: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        settings |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    handler, before = signal.getsignal(signal.SIGTERM), _started()
    place = address
    try:
        if address == "auto":
            place = _resolved(ray, address)  # which may be long gone
        host, _, port = place.rpartition(":")
        if host:
            _knock(host.strip("[]"), int(port))
        with contextlib.nullcontext() if address else _on_loopback(ray):
            ray.init(**settings)
    except Exception as error:  # of many kinds, one of them plain
        for process in _started() - before:  # of a start that failed
            with contextlib.suppress(psutil.Error):
                process.kill()
        raise ValueError(_why_not(error, address, place)) from error
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _why_not(error: Exception, address: str, place: str) -> str:
    """Why Ray did not start, or the cluster that was looked for at ``place`` cannot be had, and what to do."""
    reason = str(error).strip().split("\n")[0]
    if not address:
        return (
            f"executor = 'ray': it does not start here ({reason}). Try again; start one with ray start --head, and "
            "pass ray_address='auto'; or pass executor='lockstep'."
        )
    # Ray puts the versions on lines of their own: the cluster's, then those of this process.
    versions = re.findall(r"^ *(?:Ray|Python): (\S+)$", str(error), re.MULTILINE)
    if reason.startswith("Version mismatch") and len(versions) == 4:
        return (
            "ray_address = {!r}: the cluster there has Ray {} and Python {}, this machine has Ray {} and Python {}: "
            "must be equal. Install the same versions on all of them."
        ).format(address, *versions)
    stands_for = f", which is {place}" if place != address else ""
    return (
        f"ray_address = {address!r}{stands_for}: no Ray cluster can be reached there ({reason}). Start one with ray "
        "start --head, on this machine or with this machine in it, or correct the address (auto is what RAY_ADDRESS "
        "says, else the last cluster of this machine); without one Ray is started here. A run that was begun can go on "
        "without a cluster: randprune resume RUN --executor lockstep."
    )


def _check_same(ray: Any, address: str) -> None:
    """A process is connected to one cluster at a time."""
    if address in ("", "auto"):
        return
    here = str(ray.get_runtime_context().gcs_address)
    if _by_number(_resolved(ray, address)) != _by_number(here):
        raise ValueError(
            f"ray_address = {address!r}: this process is connected to another cluster already, at {here}. Call "
            "ray.shutdown() first, or pass that address."
        )


def _by_number(address: str) -> tuple[str, str]:
    """Host and port; a host that has a name by its number."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return host, port


def _resolved(ray: Any, address: str) -> str:
    """The HOST:PORT that Ray connects to when asked for ``address``; that itself where this Ray does not tell.

    Raises:
        OSError: auto stands for nothing.
        ValueError: RAY_ADDRESS is none.
    """
    services = getattr(ray._private, "services", None)
    find = getattr(services, "canonicalize_bootstrap_address", lambda given: given)
    found = find(address)
    if not found:
        raise ConnectionError(f"RAY_ADDRESS = {os.environ.get('RAY_ADDRESS')!r} names no cluster")
    return str(found)


def _knock(host: str, port: int) -> None:
    """Is there a server that speaks gRPC (HTTP/2), as Ray's does? Ray itself would try for minutes, and say so.

    Raises:
        OSError: there is none.
    """
    preface, settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113, 3.4 and 6.5
    with socket.create_connection((host, port), timeout=PATIENCE) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":  # whatever is there, it will not answer this
            return
        connection.sendall(preface + settings)
        if connection.recv(4)[3:] != settings[3:4]:
            raise ConnectionError("what answers there is not Ray")


@contextlib.contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """A Ray that is started inside keeps to 127.0.0.1, as it does on Windows and macOS by itself.

    Elsewhere it would listen to the network, and whoever can speak to Ray can run programs. There is no public setting:
    127.0.0.1 as the node's address is taken for a mistake. A later Ray that no longer has this one is not started.

    Raises:
        ValueError: this Ray cannot be kept to 127.0.0.1.
    """
    constants = getattr(ray._private, "ray_constants", None)
    before = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    if constants is None or before is None:
        raise ValueError(f"Ray {ray.__version__} cannot be kept to 127.0.0.1, and would listen to the network")
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def _started() -> set[psutil.Process]:
    """The processes of Ray that this one has started."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it is gone
            if any(f"{os.sep}ray{os.sep}" in part for part in process.cmdline()):
                found.add(process)
    return found


def first_done(ray: Any, refs: Sequence[Any], *, cpus: int, gpus: float) -> Any:
    """The first of ``refs`` that is done, of tasks that ask for so many CPUs and GPUs.

    Ray would wait for ever for a machine that does not come back.

    Raises:
        ValueError: no machine is left that has as many; one that starts anew may be away for ``LOOK`` seconds.
    """
    missed = False
    while True:
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=LOOK)
        if ready:
            return ready[0]
        machines = _machines(ray)
        fits = _fits(machines, cpus, gpus)
        if not fits and missed:
            raise ValueError(
                f"the cluster has lost its last machine with {cpus} CPUs and {gpus:g} GPUs ({_told(machines)}). What "
                "is finished stays: start a machine again, then go on, or go on without Ray (executor='lockstep')."
            )
        missed = not fits


class Stop:
    """A sign that tasks on any machine can see: nobody waits for them any more.

    A task that is cancelled while it completes makes Ray abort the process that asked, by force or not. So nothing is
    cancelled: a task looks at the sign between two steps, and ends by itself. The sign is sent with each task.
    """

    def __init__(self, ray: Any) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context()
        connection = here.get_node_id(), here.get_job_id()  # the first job of every cluster has the same number
        if connection not in _boards:  # one for all signs of a connection: it is a process
            _boards.clear()
            with_us = NodeAffinitySchedulingStrategy(here.get_node_id(), soft=True)  # not on a machine that may go
            _boards[connection] = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=with_us).remote()
        self._board, self._name = _boards[connection], uuid.uuid4().hex
        self._answer: Any = None
        self._next_look = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_answer": None, "_next_look": 0.0}

    def set(self) -> None:
        """Tell all tasks; does not wait for them."""
        with contextlib.suppress(Exception):  # the connection may be gone, and they with it
            self._board.set.remote(self._name)

    def is_set(self) -> bool:
        """Whether it was set, as known from the last answer; asks every ``STOP_LOOK`` seconds, and never waits."""
        ray = import_ray()
        if self._answer is None:
            if time.monotonic() >= self._next_look:
                self._answer = self._board.is_set.remote(self._name)
            return False
        if not ray.wait([self._answer], timeout=0)[0]:
            return False
        answer, self._answer = self._answer, None
        self._next_look = time.monotonic() + STOP_LOOK
        try:
            return bool(ray.get(answer))
        except ray.exceptions.RayError:  # its machine is lost: the task goes on, as one that nobody stops
            return False


class _Board:
    """An actor: the signs that are set, by name, in a process of its own."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def set(self, name: str) -> None:
        self.names.add(name)

    def is_set(self, name: str) -> bool:
        return name in self.names


_boards: dict[tuple[str, str], Any] = {}  # of the connection that this process has now


def as_completed(
    ray: Any, submit: Callable[[Key], Any], keys: Iterable[Key], *, cpus: Callable[[Key], int], gpus: float
) -> Iterator[tuple[Key, Any]]:
    """Submit a task for each key, and give each with its reference, in the order in which they are done.

    No more are submitted than the machines can run at a time: what waits in Ray's queue could not be taken back.

    Args:
        ray: connected.
        submit: starts the task of a key.
        keys: in the order in which they begin.
        cpus: that the task of a key asks for.
        gpus: that each asks for.

    Raises:
        ValueError: as ``first_done``.
    """
    left, running = deque(keys), dict[Any, Key]()

    def fill() -> None:
        while left and len(running) < max(1, _slots(ray, cpus(left[0]), gpus)):
            key = left.popleft()
            running[submit(key)] = key

    fill()
    while running:
        done = first_done(ray, list(running), cpus=min(map(cpus, running.values())), gpus=gpus)
        key = running.pop(done)
        fill()  # no machine waits for whoever takes what is done
        yield key, done


def _slots(ray: Any, cpus: int, gpus: float) -> int:
    """How many tasks that ask for so many CPUs and GPUs the machines can run at a time."""
    sizes = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in _machines(ray).values()]
    return sum(int(min(have_cpus // cpus, have_gpus // gpus if gpus else have_cpus)) for have_cpus, have_gpus in sizes)


def _machines(ray: Any) -> dict[str, Any]:
    """Those of the cluster that are alive, by their numbers."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _sizes(machines: Mapping[str, Any]) -> set[tuple[float, float]]:
    """CPUs and GPUs."""
    return {(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in machines.values()}


def _fits(machines: Mapping[str, Any], cpus: int, gpus: float) -> bool:
    return any(have_cpus >= cpus and have_gpus >= gpus for have_cpus, have_gpus in _sizes(machines))


def _told(machines: Mapping[str, Any]) -> str:
    have = "; ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in sorted(_sizes(machines)))
    return f"they have {have}" if have else "none is left"


def _check_versions(ray: Any, machines: Mapping[str, Any], cpus: int) -> None:
    """A task on each machine tells."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for name, node in machines.items():
        there = NodeAffinitySchedulingStrategy(name, soft=False)
        asked[task_of(ray, _versions_there, cpus, 0.0, num_cpus=0, scheduling_strategy=there).remote()] = node
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LONG_PATIENCE)
    ours = versions()
    for ref, node in asked.items():
        where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            theirs = ray.get(ref) if ref in ready else "it does not answer"
        except ray.exceptions.TaskUnschedulableError:  # it has left meanwhile
            continue
        except ray.exceptions.RayError as error:  # such as: there is no randprune_lab to import
            theirs = last_line(error)
        if isinstance(theirs, str):
            raise ValueError(
                f"the cluster's machine {where} cannot work for this run: {theirs}. Install randprune-lab there, as "
                "it is here, or take the machine out of the cluster."
            )
        for name in ours:
            if theirs[name] != ours[name]:
                raise ValueError(
                    f"the cluster's machine {where} has {name} {theirs[name]}, this one has {ours[name]}: must be "
                    "equal, or its results would be others. Install the same version on all of them."
                )


def task_of(ray: Any, function: Callable[..., Any], cpus: int, gpus: float, **others: Any) -> Any:
    """A function as a task, in a process whose threads are set before it imports torch."""
    threads = {"OMP_NUM_THREADS": str(cpus), "OMP_WAIT_POLICY": "PASSIVE"}
    settings = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "runtime_env": {"env_vars": threads}}
    return ray.remote(function).options(**(settings | others))


def last_line(error: BaseException) -> str:
    """Of what an error says; Ray's say much."""
    return str(error).strip().rsplit("\n", 1)[-1].strip()


def _versions_there() -> dict[str, str]:
    return versions()
