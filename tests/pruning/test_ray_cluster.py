"""Candidates and runs on a real Ray: the same numbers as here, also when a worker or a machine is lost."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support.runs import same_tensors, tiny, tiny_model, tiny_task
from support.studies import made, study
from torch import nn

from randprune_lab import cluster as cluster_module
from randprune_lab import on_ray, study_runs
from randprune_lab.cluster import connected
from randprune_lab.config import RunConfig
from randprune_lab.engine import prune
from randprune_lab.events import CandidateScored, Checkpoint, RunStarted
from randprune_lab.study_results import gather, write_results
from randprune_lab.study_runs import events_of, on_cluster, read_state, run_study

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.cluster,
    # Ray leaves its child processes and sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


LIMIT = 300  # seconds, after which something will never come


def alike(config: RunConfig, one: list, other: list) -> None:
    """Events and tensors, bit for bit."""
    for first, second in zip(one, other, strict=True):
        if isinstance(first, Checkpoint):
            assert first.progress == second.progress
            assert same_tensors(first.tensors, second.tensors)
        elif not isinstance(first, RunStarted):  # which tells the configuration
            assert first == second
    assert len({event.candidate for event in one if isinstance(event, CandidateScored)}) == config.candidates


def test_a_ray_of_ones_own_leaves_nothing_behind_when_a_run_fails():
    before, handler = set(psutil.Process().children(recursive=True)), signal.getsignal(signal.SIGTERM)
    config = tiny(executor="ray", candidates=2, dense_epochs=1, threads=os.cpu_count())  # one worker at a time
    stream = prune(config, model=tiny_model(), data=tiny_task())
    judged = next(event for event in stream if isinstance(event, CandidateScored))
    (machine,) = ray.nodes()
    assert machine["NodeManagerAddress"] == "127.0.0.1"
    started = set(psutil.Process().children(recursive=True)) - before
    for process in started:
        addresses = {one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    stream.close()  # as an error of whoever takes the events would
    psutil.wait_procs(started, timeout=20)
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler
    alone = prune(config.model_copy(update={"executor": "serial"}), model=tiny_model(), data=tiny_task())
    assert judged == next(event for event in alone if isinstance(event, CandidateScored))


@pytest.fixture(scope="module")
def cluster():
    """Two machines, as far as Ray can tell, with a CPU each; this process is connected to the first."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.ExitStack() as stack:
        bare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1} | bare)
        stack.callback(made.shutdown)
        made.add_node(num_cpus=1)
        stack.enter_context(connected(made.address, cpus=1, gpus=0.0))
        yield made


def test_another_version_anywhere_is_refused(cluster, monkeypatch):  # noqa: ARG001
    real = cluster_module.versions()
    for name in real:
        monkeypatch.setattr(cluster_module, "versions", lambda name=name: real | {name: "0.0.0"})
        with pytest.raises(ValueError, match=rf"has {name} .*, this one has 0.0.0: must be equal"):
            prune(tiny(executor="ray", ray_address="auto"), model=tiny_model(), data=tiny_task())


def test_a_process_that_is_connected_stays_with_its_cluster_and_says_so(cluster):
    port = cluster.address.rpartition(":")[2]
    for same in ("", "auto", cluster.address, f"localhost:{port}", f"127.0.0.1:{port}"):
        with connected(same, cpus=1, gpus=0.0, check_versions=False):
            pass
    for other in ("10.9.9.9:6379", f"10.9.9.9:{port}", "127.0.0.1:1"):
        message = rf"ray_address = '{other}': this process is connected to another cluster already, at .*:{port}\."
        with pytest.raises(ValueError, match=message), connected(other, cpus=1, gpus=0.0):
            pass
    assert ray.is_initialized()


def test_a_machine_that_cannot_import_the_package_is_named(cluster, monkeypatch):  # noqa: ARG001
    def broken():
        raise ModuleNotFoundError("No module named 'randprune_lab'")

    monkeypatch.setattr(cluster_module, "_versions_there", broken)
    with pytest.raises(ValueError, match=r"cannot work for this run: .*No module named 'randprune_lab'"):
        next(on_ray.in_cluster(lambda config: config.seed, {"a": RunConfig()}))


@pytest.mark.parametrize("wanted", [{"threads": 64, "gpus": 0.0}, {"threads": 1, "gpus": 1.0}])
def test_more_than_any_machine_has_is_refused(cluster, wanted):  # noqa: ARG001
    jobs = {"a": RunConfig(), "b": RunConfig(threads=wanted["threads"])}
    with pytest.raises(ValueError, match=r"no machine of the cluster has as many .*have 1 CPUs and 0 GPUs"):
        next(on_ray.in_cluster(lambda config: config.seed, jobs, gpus=wanted["gpus"]))


def test_jobs_come_with_their_keys_and_with_the_threads_they_ask_for(cluster):  # noqa: ARG001
    def work(config):
        return config.seed, config.executor, os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]

    told = []
    jobs = {("run", seed): RunConfig(seed=seed, executor=("ray", "serial")[seed % 2]) for seed in range(5)}
    found = dict(on_ray.in_cluster(work, jobs, lambda *done: told.append(done)))
    assert found == {("run", n): (n, ("lockstep", "serial")[n % 2], "1", "PASSIVE") for n in range(5)}
    assert told == [(done, 5) for done in range(1, 6)]


def test_what_a_job_raises_is_raised_here(cluster):  # noqa: ARG001
    def work(config):
        if config.seed == 1:
            raise ValueError("seed = 1: must be another.")
        return config.seed

    with pytest.raises(ValueError, match=r"^seed = 1: must be another\.$"):
        list(on_ray.in_cluster(work, {seed: RunConfig(seed=seed) for seed in range(3)}))


class ConvertsNothing(nn.Identity):
    """Of a module that only this process has."""


def dying_once(sign: str) -> nn.Module:
    """``tiny_model``, which kills the first worker that trains it, and leaves a sign."""
    asker = os.getpid()

    class DyingOnce(nn.Module):
        def __init__(self, inner):  # from here, since a worker does not find this folder
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            if self.training and os.getpid() != asker:
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(sign, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
            return self.inner(inputs)

    return DyingOnce(tiny_model())


def test_a_race_on_ray_is_the_race_here_though_a_worker_is_lost_in_the_middle(cluster, tmp_path):  # noqa: ARG001
    sign = tmp_path / "reached"
    config = tiny(candidates=5, dense_epochs=1, max_epochs=1, racing=True, emep_epochs=2)
    runs = [
        list(prune(config.model_copy(update={"executor": name}), model=dying_once(str(sign)), data=tiny_task()))
        for name in ("ray", "serial", "lockstep")
    ]
    assert sign.exists()
    for other in runs[1:]:
        alike(config, runs[0], other)


def test_a_model_that_no_worker_can_import_is_refused_before_anything_is_trained(cluster):  # noqa: ARG001
    model = nn.Sequential(tiny_model(), ConvertsNothing())
    stream = prune(tiny(executor="ray"), model=model, data=tiny_task())
    assert next(stream).kind == "run_started"
    with pytest.raises(ValueError, match=r"cannot read what it was sent .*No module named"):
        next(stream)


def test_work_that_nobody_waits_for_is_given_up(cluster, tmp_path):  # noqa: ARG001
    folder = str(tmp_path)

    def work(config):
        open(os.path.join(folder, str(config.seed)), "a").close()
        time.sleep(0.3)

    jobs = {seed: RunConfig(seed=seed) for seed in range(20)}
    for _ in itertools.islice(on_ray.in_cluster(work, jobs), 2):
        pass
    time.sleep(1.5)
    assert len(list(tmp_path.iterdir())) < 8


def wait_for(sign, seconds=LIMIT):
    until = time.monotonic() + seconds
    while not sign():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.usefixtures("cluster")
def test_training_that_nobody_waits_for_ends_at_its_next_step(tmp_path):
    """Its machine is free again: what comes next is not kept waiting."""
    folder = str(tmp_path)

    def work(config):
        if config.seed == 9:
            return "quick"
        try:
            return events_of(config)
        finally:
            open(os.path.join(folder, f"ended-{config.seed}"), "a").close()

    without_end = {"dense_epochs": 10**6, "device": "cpu", "method": "imp"}
    jobs = {"quick": RunConfig(seed=9)} | {seed: RunConfig(seed=seed, **without_end) for seed in range(4)}
    assert next(on_ray.in_cluster(work, jobs)) == ("quick", "quick")  # and then it is closed
    assert list(on_ray.in_cluster(work, {"a": RunConfig(seed=9), "b": RunConfig(seed=9)}))  # each has its machine
    begun = len(list(tmp_path.iterdir()))
    assert begun <= 2  # as many as there are machines
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)


@pytest.mark.usefixtures("cluster")
def test_a_race_that_is_given_up_leaves_the_next_one_as_it_is(tmp_path):
    config = tiny(candidates=5, dense_epochs=1, max_epochs=1, racing=True, emep_epochs=2, executor="ray")
    sign = str(tmp_path / "reached")
    stream = prune(config, model=dying_once(sign), data=tiny_task())
    next(event for event in stream if isinstance(event, CandidateScored))
    stream.close()
    whole, here = (
        list(prune(config.model_copy(update={"executor": name}), model=dying_once(sign), data=tiny_task()))
        for name in ("ray", "serial")
    )
    alike(config, whole, here)


def test_a_study_whose_machine_is_lost_in_the_middle_comes_to_the_same(cluster, monkeypatch, tmp_path):
    """Whatever comes to the doomed machine leaves a sign, and comes to no end."""
    (machine,) = cluster.worker_nodes
    doomed, sign = machine.node_id, str(tmp_path / "reached")

    def work(config):
        if ray.get_runtime_context().get_node_id() == doomed:
            open(sign, "a").close()
            time.sleep(LIMIT)
        return events_of(config)

    def pull_the_plug():
        until = time.monotonic() + LIMIT
        while not os.path.exists(sign) and time.monotonic() < until:
            time.sleep(0.05)
        cluster.remove_node(machine, allow_graceful=False)

    monkeypatch.setattr(study_runs, "events_of", work)
    thread = threading.Thread(target=pull_the_plug, daemon=True)
    thread.start()
    asked = study()
    folders = [
        run_study(asked, parent=tmp_path / "there", spread=on_cluster("auto", 0.0)),
        made(asked, tmp_path / "here"),
    ]
    thread.join(LIMIT)
    assert os.path.exists(sign)
    for folder in folders:
        assert read_state(folder).failed == {}
        write_results(folder, gather(asked, folder.parent))
    for name in ("results.csv", "candidates.csv"):
        there, here = ((folder / name).read_bytes() for folder in folders)
        assert there == here
    while [node["Alive"] for node in ray.nodes()].count(True) > 1:
        time.sleep(0.1)  # the cluster looks at its machines every few seconds


# Who asks is a process of its own: where Ray aborts it, the tests go on, and say so.
ASKER = """
import itertools, os, signal, sys
from pathlib import Path
from randprune_lab.cluster import Stop, as_completed, connected, task_of
from randprune_lab.on_ray import stopping

def work(number, doomed, stop):
    if number == 3 and doomed and not doomed.exists():
        doomed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number, stop.is_set()

rounds, killed, folder = int(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3])
with connected("", cpus=1, gpus=0.0) as ray:
    task = task_of(ray, work, 1, 0.0)
    for turn in range(rounds):
        doomed = folder / str(turn) if killed and turn % 20 == 10 else None
        with stopping(ray) as stop:
            submit = lambda number: task.remote(number, doomed, stop)
            done = as_completed(ray, submit, range(6), cpus=lambda _: 1, gpus=0.0)
            for number, ref in itertools.islice(done, turn % 4):
                assert ray.get(ref)[0] == number
    assert ray.get(task.remote(7, None, Stop(ray))) == (7, False)
print("alive")
"""


@pytest.mark.parametrize(("rounds", "killed"), [(500, False), (60, True)], ids=["done", "killed"])
def test_whoever_gives_up_work_that_is_just_done_lives_on(tmp_path, rounds, killed):
    """By ``ray.cancel`` such rounds ended with Ray aborting the asking process. ``killed``: a worker, now and then."""
    order = [sys.executable, "-c", ASKER, str(rounds), str(killed), str(tmp_path)]
    asker = subprocess.run(order, capture_output=True, text=True, timeout=LIMIT)
    assert (asker.returncode, asker.stdout[-6:]) == (0, "alive\n"), asker.stderr[-3000:]
    assert len(list(tmp_path.iterdir())) == (3 if killed else 0)
