"""Candidates and runs on Ray: the same numbers as here, also when a machine is lost; what cannot work is refused."""

import contextlib
import importlib.metadata
import platform
import re
import socket
import sys
import threading
import types

import pydantic
import pytest
import torch
from support.runs import same_tensors, small, stop_after, tiny, tiny_model, tiny_task
from support.studies import study
from torch import nn

from randprune_lab import cluster as cluster_module
from randprune_lab import engine, jobs, on_ray, store, study_runs, work
from randprune_lab.cluster import connected, first_done
from randprune_lab.config import FREE, RunConfig
from randprune_lab.engine import prune
from randprune_lab.studies import expand
from randprune_lab.study_runs import events_of, on_cluster, read_state, run_study

ray = pytest.importorskip("ray")
# Ray leaves its child processes and sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:subprocess .* is still running:ResourceWarning",
    "ignore:unclosed:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", ":6379", "10.0.0.1:port", "10.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(pydantic.ValidationError, match="must be HOST:PORT, auto, or empty"):
        RunConfig(ray_address=address)


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf")])
def test_gpus_are_a_part_of_one_or_whole_ones(gpus):
    with pytest.raises(pydantic.ValidationError, match="ray_gpus"):
        RunConfig(ray_gpus=gpus)
    assert [RunConfig(ray_gpus=given).ray_gpus for given in (0, 0.25, 1, 4)] == [0, 0.25, 1, 4]


def test_without_ray_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # import ray: ModuleNotFoundError
    with pytest.raises(ValueError, match=r'pip install "randprune-lab\[ray\]"'):
        prune(tiny(executor="ray"), model=tiny_model(), data=tiny_task())


def test_candidates_are_trained_on_the_kind_of_device_that_the_rest_is_on():
    with pytest.raises(ValueError, match="ray_gpus = 0, and the run is on cuda"):
        on_ray.check(RunConfig(executor="ray"), torch.device("cuda"))
    with pytest.raises(ValueError, match=r"ray_gpus = 0\.5, and the run is on cpu"):
        on_ray.check(RunConfig(executor="ray", ray_gpus=0.5), CPU)
    on_ray.check(RunConfig(ray_gpus=0.5), CPU)  # Ray is not asked for


def test_what_this_machine_does_not_have_is_refused_before_ray_is_started(monkeypatch):
    monkeypatch.setattr(on_ray.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_ray.check(RunConfig(executor="ray", threads=2), CPU)
    on_ray.check(RunConfig(executor="ray", ray_gpus=0.5), torch.device("cuda"))
    with pytest.raises(ValueError, match=r"threads = 3, .* has 2 CPUs and 1 GPUs"):
        on_ray.check(RunConfig(executor="ray", threads=3), CPU)
    with pytest.raises(ValueError, match=r"ray_gpus = 2: .* has 2 CPUs and 1 GPUs"):
        on_ray.check(RunConfig(executor="ray", ray_gpus=2), torch.device("cuda"))
    assert not ray.is_initialized()


@pytest.mark.parametrize("settings", [{"method": "imp"}, {"candidates": 1}])
def test_a_run_that_compares_nothing_needs_no_ray(monkeypatch, settings):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = tiny(executor="ray", ray_address="127.0.0.1:1", dense_epochs=1, max_epochs=1, **settings)
    assert list(prune(config, model=tiny_model(), data=tiny_task()))


def test_a_cluster_that_cannot_be_reached_is_refused_before_anything_is_trained():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        config = tiny(executor="ray", ray_address=f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(ValueError, match="no Ray cluster can be reached"):
            prune(config, model=tiny_model(), data=tiny_task())
    with socket.create_server(("127.0.0.1", 0)) as other:  # answers, but not as Ray would
        threading.Thread(target=lambda: other.accept()[0].sendall(b"HTTP/1.1 400 Bad Request"), daemon=True).start()
        config = tiny(executor="ray", ray_address=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"reached there \(what answers there is not Ray\)"):
            prune(config, model=tiny_model(), data=tiny_task())
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("stale", "said"),
    [
        ("10.0.0.1:6379", r"auto', which is 10\.0\.0\.1:\d+: no Ray cluster can be reached there \(made to fail\)"),
        ("local", r"auto': no Ray cluster .*\(RAY_ADDRESS = 'local' names no cluster\)"),
        ("ray://10.0.0.1:10001", "no Ray cluster .*Invalid address format: ray://"),
    ],
)
def test_auto_that_stands_for_nothing_any_more_is_refused_at_once(monkeypatch, stale, said):
    """Ray itself would try for minutes."""

    def refused(*_, **__):
        raise OSError("made to fail")

    monkeypatch.setenv("RAY_ADDRESS", stale)
    monkeypatch.setattr(cluster_module.socket, "create_connection", refused)
    monkeypatch.setattr(ray, "init", None)  # it is not even asked
    with pytest.raises(ValueError, match=said), connected("auto", cpus=1, gpus=0.0):
        pass


def test_a_cluster_of_another_ray_or_python_is_told_with_the_versions(monkeypatch):
    theirs = {"ray_version": "2.50.1", "python_version": "3.11.2"}
    monkeypatch.setattr(cluster_module, "_knock", lambda *_: None)
    monkeypatch.setattr(ray, "init", lambda **_: ray._private.utils.check_version_info(theirs, "10.0.0.2:0"))
    ours = rf"this machine has Ray {re.escape(ray.__version__)} and Python {re.escape(platform.python_version())}"
    with (
        pytest.raises(ValueError, match=rf"there has Ray 2\.50\.1 and Python 3\.11\.2, {ours}: .*Install the same"),
        connected("10.0.0.1:6379", cpus=1, gpus=0.0),
    ):
        pass


def test_a_ray_that_would_listen_to_the_network_is_not_started(monkeypatch):
    monkeypatch.delattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER")
    monkeypatch.setattr(ray, "init", None)
    with (
        pytest.raises(ValueError, match=r"does not start here \(Ray .* cannot be kept to 127\.0\.0\.1"),
        connected("", cpus=1, gpus=0.0),
    ):
        pass


def test_a_checkout_that_is_not_installed_is_told(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "randprune-lab":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    assert {"torch", "numpy", "scipy", "scikit-learn", "Python"} < set(cluster_module.versions())
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ValueError, match=r"randprune-lab is not installed on .*Run pip install"):
        cluster_module.versions()


class Pretended:
    """As much of Ray as is asked for, in this process: a result that is an exception is raised when it is fetched."""

    exceptions = ray.exceptions

    def __init__(self, looks=()):
        self.looks = iter(looks)  # the machines' resources, whenever one has waited in vain
        self.machines = [{"CPU": 1}]

    def remote(self, function):
        """A task; or an actor, of which nothing is asked but that it be there."""
        task = types.SimpleNamespace(remote=lambda *args: Ref(function, args))
        if isinstance(function, type):
            task = types.SimpleNamespace(remote=lambda: Actor(function()))
        return types.SimpleNamespace(options=lambda **_: task)

    def wait(self, refs, *, num_returns=1, timeout):
        assert num_returns == 1
        assert timeout <= 60
        self.machines = next(self.looks, None)
        return ([], refs) if self.machines is not None else (refs[:1], refs[1:])

    def get(self, ref):
        return ref.result()

    def put(self, thing):
        return thing

    def get_runtime_context(self):
        return types.SimpleNamespace(get_node_id=lambda: 28 * "00", get_job_id=lambda: "none")

    def nodes(self):
        return [{"NodeID": place, "Alive": True, "Resources": has} for place, has in enumerate(self.machines or ())]


class Actor:
    """What it holds is in this process, too."""

    def __init__(self, held):
        self.held = held

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *args: Ref(getattr(self.held, name), args))


class Ref:
    """What a task will have returned."""

    def __init__(self, function, args=()):
        self.result = lambda: function(*args)


@pytest.fixture
def pretended(monkeypatch):
    """No Ray is started."""
    made = Pretended()
    monkeypatch.setattr(on_ray, "connected", lambda *_, **__: contextlib.nullcontext(made))
    monkeypatch.setattr(cluster_module, "import_ray", lambda: made)
    monkeypatch.setattr(cluster_module, "_boards", {})
    return made


@pytest.mark.parametrize("left", [[], [{}], [{"CPU": 0.0}], [{"CPU": 1.0}], [{"GPU": 1.0, "CPU": 1.0}, {"CPU": 9.0}]])
def test_nobody_waits_for_machines_that_do_not_come_back(left):
    fit = [{"CPU": 2.0, "GPU": 1.0}]
    wanted = {"cpus": 2, "gpus": 0.5}
    assert first_done(Pretended([fit, left, fit, fit, left, fit]), "ab", **wanted) == "a"
    have = r"they have \d" if left else "none is left"
    with pytest.raises(ValueError, match=rf"lost its last machine with 2 CPUs and 0\.5 GPUs \({have}"):
        first_done(Pretended([fit, left, left]), "ab", **wanted)


def raising(error):
    def work(*_):
        raise error

    return work


def of_task(cause):
    """What Ray makes of an error in a task."""
    return ray.exceptions.RayTaskError("work", "Traceback:\nWhat: ever", cause, "worker", 1, "127.0.0.1")


class CannotBeSent(Exception):  # noqa: N818
    def __reduce__(self):
        raise TypeError("cannot pickle it")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (of_task(KeyError("x")), KeyError, "^'x'$"),
        (of_task(CannotBeSent("no")), RuntimeError, "^What: ever$"),
        (
            of_task(ray.exceptions.RaySystemError("no", "Traceback:\nModuleNotFoundError: No module named 'mine'")),
            ValueError,
            r"cannot read what it was sent \(ModuleNotFoundError: No module named 'mine'\)",
        ),
        (ray.exceptions.WorkerCrashedError(), on_ray.Lost, r"lost 6 times \(The worker died unexpectedly .*memory"),
        (ray.exceptions.NodeDiedError("it is gone"), on_ray.Lost, r"lost 6 times \(it is gone\)"),
        (ray.exceptions.OutOfMemoryError("out\nof"), on_ray.Lost, r"lost 6 times \(out\)"),
        (ray.exceptions.TaskUnschedulableError("no place"), on_ray.Lost, r"no result \(.*no place\)\. Look at"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_went_wrong_in_a_worker_is_called_what_it_is(error, kind, said):
    with pytest.raises(kind, match=said):
        on_ray._result(Pretended(), Ref(raising(error)))


@pytest.mark.usefixtures("pretended")
def test_jobs_leave_gpus_alone_that_were_not_given_to_them():
    jobs = {name: RunConfig(device=name) for name in ("auto", "cpu")}
    assert dict(on_ray.in_cluster(lambda config: config.device, jobs)) == {"auto": "cpu", "cpu": "cpu"}
    jobs["cuda"] = RunConfig(device="cuda")
    assert dict(on_ray.in_cluster(lambda config: config.device, jobs, gpus=0.5)) == {name: name for name in jobs}
    with pytest.raises(ValueError, match="device = 'cuda' with ray_gpus = 0"):
        next(on_ray.in_cluster(lambda config: config.device, jobs))


@pytest.mark.usefixtures("pretended")
def test_a_run_that_is_lost_too_often_is_one_of_a_study_that_failed(monkeypatch, tmp_path):
    asked = study(seeds=2, lines={"IMP": {"method": "imp"}})
    bad = ray.exceptions.WorkerCrashedError()
    monkeypatch.setattr(study_runs, "events_of", lambda config: raising(bad)() if config.seed else events_of(config))
    folder = run_study(asked, parent=tmp_path, spread=on_cluster("", 0.0))
    state = read_state(folder)
    assert (state.done, state.of) == (2, 2)
    assert list(state.failed) == [run.id for run in expand(asked) if run.seed]
    assert next(iter(state.failed.values())).startswith("a worker of Ray was lost 6 times")


@pytest.mark.usefixtures("pretended")
def test_candidates_that_are_lost_too_often_end_a_run_with_a_sentence(monkeypatch, tmp_path, command):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    monkeypatch.setattr(on_ray, "_train", raising(ray.exceptions.WorkerCrashedError()))
    short = "--dense-epochs 1 --max-epochs 1 --max-steps-per-epoch 2 --candidates 2 --device cpu --no-controls"
    code, _, err = command("run", "--executor", "ray", *short.split())
    assert code == 2
    assert "a worker of Ray was lost 6 times" in " ".join(err.split())
    assert "Traceback" not in err


def test_a_run_whose_cluster_is_gone_goes_on_elsewhere(pretended, monkeypatch, tmp_path, command):  # noqa: ARG001
    config = small(executor="ray", ray_address="127.0.0.1:1", max_steps_per_epoch=2)
    stop_after(tmp_path, config, 4)
    monkeypatch.undo()  # it was on a cluster that was there
    code, _, err = command("resume", tmp_path)
    assert code == 2
    assert "no Ray cluster can be reached there" in " ".join(err.split())
    code, _, err = command("resume", tmp_path, "--executor", "lockstp")
    assert code == 2
    assert "executor" in err
    code, _, err = command("resume", tmp_path, "--executor", "lockstep", "--ray-address", "none", "--ray-gpus", "0")
    assert code == 0, err
    assert store.summary(tmp_path).status == "finished"


def test_in_the_background_too_a_run_goes_on_as_it_is_told(monkeypatch, tmp_path):
    stop_after(tmp_path / "run", small(), 4)
    given = {"wave": 2, "executor": "ray", "ray_address": "", "ray_gpus": 0.5}
    assert set(given) == set(FREE)
    with pytest.raises(ValueError, match=r"ray_gpus = 1\.5"):
        jobs.resume(tmp_path / "run", ray_gpus=1.5)
    begun, seen = [], []
    monkeypatch.setattr(jobs, "begin", lambda _, __, *arguments: begun.extend(arguments))
    jobs.resume(tmp_path / "run", **given)
    monkeypatch.setattr(work, "_lower_priority", lambda: None)
    monkeypatch.setattr(engine, "prune", lambda config, **_: seen.append(config) or iter(()))
    work.main([str(tmp_path / "run"), *begun])
    assert [{name: getattr(config, name) for name in FREE} for config in seen] == [given]


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("method", "fix", "idle"), [("randomized", "--executor serial", "--wave 1"), ("imp", "--wave 1", "--ray-gpus")]
)
def test_what_helps_where_memory_runs_out_is_named(monkeypatch, tmp_path, command, method, fix, idle):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    monkeypatch.setattr(engine.Phase, "epoch", raising(torch.OutOfMemoryError("CUDA out of memory")))
    code, _, err = command("run", "--executor", "ray", "--method", method, "--no-controls", "--device", "cpu")
    assert code == 2
    said = " ".join(err.split())
    assert re.search(rf"Resume with .*{fix}.* Go on with: randprune resume \S+ {fix}", said)
    assert idle not in said


def test_a_network_is_sent_without_a_copy_of_its_weights(monkeypatch):
    """On a GPU the copy would be a second network there."""
    inner = tiny_model()
    inner[0].weight.requires_grad_(False)
    model = nn.ModuleDict({"a": inner, "b": inner[5], "c": nn.Linear(12, 3)})
    model["c"].weight = inner[5].weight
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", None)  # whoever copies a weight fails
    sent = on_ray._in_main_memory(model)
    assert same_tensors(dict(sent.state_dict()), dict(model.state_dict()))
    assert sent["c"].weight is sent["b"].weight is sent["a"][5].weight
    assert sent["a"][0] is not inner[0]
    frozen = [not weight.requires_grad for weight in model.parameters()]
    assert [not weight.requires_grad for weight in sent.parameters()] == frozen
    assert any(frozen)
