"""What a study would cost, before it is begun."""

import pytest
from support.studies import TINY, study

from randprune_lab import study_cost
from randprune_lab.config import RunConfig
from randprune_lab.estimate import Estimate
from randprune_lab.studies import expand
from randprune_lab.study_cost import Cost, cost
from randprune_lab.study_runs import kind_of


def epochs_by_hand(config):
    judging = config.candidates * config.emep_epochs if config.method == "randomized" else 0
    return config.dense_epochs + len(config.stages) * (config.max_epochs + judging)


def test_one_run_of_each_kind_is_timed_and_the_others_follow_by_their_epochs(monkeypatch):
    timed = []

    def pretended(config):
        timed.append(config)
        return Estimate(10.0 * len(timed), 0, 0, 0.1, "")

    monkeypatch.setattr(study_cost, "estimate", pretended)
    lines = {"a": {}, "b": {"batch_size": 8}, "IMP": {"control": "imp-matched", "of": "a"}}
    configs = [run.config for run in expand(study(lines=lines, grid={"candidates": [2, 4]}, seeds=3))]
    found = cost(configs, 2)
    assert [kind_of(config) for config in timed] == list(dict.fromkeys(map(kind_of, configs)))
    assert len(timed) == 3
    first = {kind_of(config): (10.0 * place, epochs_by_hand(config)) for place, config in enumerate(timed, start=1)}
    wanted = [first[kind_of(config)][0] * epochs_by_hand(config) / first[kind_of(config)][1] for config in configs]
    assert found.seconds == pytest.approx(sum(wanted))
    assert found.processes == 2


@pytest.mark.parametrize(("runs", "processes", "used"), [(0, 2, 1), (1, 2, 1), (3, 2, 2), (3, 8, 3)])
def test_no_more_processes_than_runs(monkeypatch, runs, processes, used):
    monkeypatch.setattr(study_cost, "estimate", lambda _: Estimate(60.0, 0, 0, 0.1, ""))
    found = cost([RunConfig(**TINY, seed=seed) for seed in range(runs)], processes)
    assert found == Cost(pytest.approx(60.0 * runs), used)
    assert f"with {used} at a time" in found.sentence
    assert found.to_json() == {"seconds": found.seconds, "processes": used, "sentence": found.sentence}


def test_the_real_thing_is_timed():
    found = cost([RunConfig(**TINY, seed=seed) for seed in range(100)], 2)
    alone = cost([RunConfig(**TINY)], 2)
    assert alone.seconds > 0
    assert found.seconds > 10 * alone.seconds  # of the same machine, a moment apart: 100 times, but for noise


def test_what_cannot_be_made_has_no_cost(tmp_path):
    with pytest.raises(ValueError, match="none"):
        cost([RunConfig(**TINY, model=str(tmp_path / "none"))], 2)
