"""Training under masks: what is pruned stays exactly 0, and every random choice is a function of the configuration."""

import math
import random

import numpy as np
import pytest
import torch
from support.runs import SIZES, checkpoints, conv_parts, events, small, tiny, tiny_model, tiny_parts, tiny_task
from torch import nn

from randprune_lab import engine, training
from randprune_lab.config import RunConfig
from randprune_lab.distill import all_logits, logit_loss
from randprune_lab.events import CandidateScored, Checkpoint, EpochFinished, RunFinished
from randprune_lab.masks import unpack
from randprune_lab.tasks import Task
from randprune_lab.training import Diverged, Phase, Session, fine_tuning_rate


@pytest.fixture
def phases(monkeypatch):
    """Every phase that a run begins: (phase, its masks)."""
    begun = []
    begin = Phase.__init__

    def watched(self, session, name, stage, masks, learning_rate, *model):
        begun.append((self, dict(masks)))
        begin(self, session, name, stage, masks, learning_rate, *model)

    monkeypatch.setattr(Phase, "__init__", watched)
    return begun


def outside(phase, masks):
    """All that must be 0: the weights outside the masks, and AdamW's two moments of them."""
    parameters = dict(phase.model.named_parameters())
    for name, mask in masks.items():
        yield parameters[name].detach()[~mask]
        state = phase.optimizer.state.get(parameters[name], {})
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                yield state[moment][~mask]


@pytest.mark.parametrize("model", ["mlp", "conv"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_is_pruned_stays_exactly_0_after_every_step(monkeypatch, phases, model, precision):
    """Looked at when the next step begins, and for a phase's last step when the network is evaluated."""
    seen = {"steps": 0, "moments": 0}

    def look():
        phase, masks = phases[-1]
        values = list(outside(phase, masks))
        assert not any(value.any() for value in values), f"{phase.name} of stage {phase.stage}"
        seen["moments"] += len(values) == 3 * len(masks) > 0

    step, evaluate = torch.optim.AdamW.step, Session.evaluate

    def watched_step(self, *args, **kwargs):
        look()
        seen["steps"] += 1
        parameters = dict(phases[-1][0].model.named_parameters())
        # the gradient would revive them: else this test shows nothing
        assert all(parameters[name].grad[~mask].any() for name, mask in phases[-1][1].items())
        return step(self, *args, **kwargs)

    def watched_evaluate(self, split, model=None):
        if phases and phases[-1][0].name != "dense":
            look()
        return evaluate(self, split, model)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    monkeypatch.setattr(Session, "evaluate", watched_evaluate)
    settings = {"weight_decay": 0.1, "learning_rate": 1e-2, "precision": precision, "patience": 1}
    settings["executor"] = "serial"  # one phase after another, so that the last one begun is the one at work
    if model == "mlp":
        events(small(**settings))
        steps = 17
    else:
        events(tiny(**settings), **conv_parts())
        steps = math.ceil(72 / 16)
    assert seen["steps"] >= steps * (2 + 2 * 3 + 1 + 2)
    assert seen["moments"] >= steps * (2 * 3 + 1 + 2) - 20


def test_every_checkpoint_has_zeros_outside_its_masks_and_moments():
    for checkpoint in checkpoints(small(weight_decay=0.1, learning_rate=1e-2)):
        tensors = checkpoint.tensors
        for name, size in SIZES.items():
            mask = unpack(tensors[f"mask.{name}"], tensors[f"model.{name}"].shape)
            assert mask.numel() == size
            for label in (f"model.{name}", f"optimizer.{name}.exp_avg", f"optimizer.{name}.exp_avg_sq"):
                if label in tensors:
                    assert not tensors[label][~mask].any()


def test_training_learns():
    last = events(small(dense_epochs=20, max_epochs=10, stages=(0.5,)))[-1]
    assert isinstance(last, RunFinished)
    assert last.test.metric > 0.9


# ---- the learning-rate plan


def test_the_learning_rate_plan():
    """Five stages of 4 epochs of 10 steps: 200 steps, the first 20 of them warm up."""
    config = RunConfig(stages=(0.1, 0.2, 0.3, 0.4, 0.5), max_epochs=4, learning_rate=0.5)
    plan = [[fine_tuning_rate(config, stage, 10)(step) for step in range(40)] for stage in range(1, 6)]
    assert plan[0][:20] == pytest.approx([0.5 * (step + 1) / 20 for step in range(20)])
    assert set(plan[0][20:]) == {0.5}
    assert [set(stage) for stage in plan[1:4]] == [{0.5}] * 3
    assert plan[4] == pytest.approx([0.5 * (1 - step / 40) for step in range(40)])
    assert 0 < plan[4][-1] < plan[4][-2] < plan[4][0]


def test_a_warm_up_longer_than_a_stage_goes_on_in_the_next():
    config = RunConfig(stages=[(stage + 1) / 100 for stage in range(30)], max_epochs=1, learning_rate=1.0)
    rates = [fine_tuning_rate(config, stage, 10)(step) for stage in range(1, 31) for step in range(10)]
    assert rates[:30] == pytest.approx([(step + 1) / 30 for step in range(30)])
    assert set(rates[30:290]) == {1.0}


def test_the_optimizer_gets_the_planned_rates(monkeypatch, phases):
    used = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        phase = phases[-1][0]
        used.append((phase.name, phase.stage, self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    config = tiny(emep_epochs=2, weight_decay=0.05, executor="serial")
    said = events(config, **tiny_parts())
    assert {decay for *_, decay in used} == {0.05}
    steps = math.ceil(72 / 16)

    def rates(name, stage):
        return [rate for phase, at, rate, _ in used if (phase, at) == (name, stage)]

    assert rates("dense", 0) == [1e-2] * 2 * steps
    for stage in (1, 2):
        assert rates("emep", stage) == pytest.approx([3e-2] * 3 * 2 * steps)
        plan = fine_tuning_rate(config, stage, steps)
        assert rates("fine-tuning", stage) == [plan(step) for step in range(2 * steps)]
    assert [e.learning_rate for e in said if isinstance(e, EpochFinished) and e.stage == 2] == pytest.approx(
        rates("fine-tuning", 2)[steps - 1 :: steps]
    )


# ---- dropout, batch order, ambient random state


class Common(list):
    """A list that copies of its owner share."""

    def __deepcopy__(self, memo):
        return self


class Recorder(nn.Module):
    """Dropout of inputs that are never 0, and what it dropped; the first input column is the row's number."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.rest = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.dropped, self.rows = Common(), Common()

    def forward(self, inputs):
        kept = self.dropout(inputs)
        if self.training:
            self.dropped.append((kept == 0).detach().clone())
            self.rows.append([round(float(value)) for value in inputs[:, 0]])
        return self.rest(kept)


def recorded(**settings):
    """(phase, stage) -> a list of its instances, each a list of (rows, dropped) a step."""
    task = tiny_task()
    rows = torch.arange(1, len(task.train) + 1)
    task.train.inputs[:, 0] = rows.float()
    torch.manual_seed(17)
    model = Recorder()
    config = tiny(executor="serial", **settings)
    marks, begin = [], Phase.__init__

    def marked(self, *args):
        begin(self, *args)
        marks.append((self.name, self.stage, len(model.rows)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Phase, "__init__", marked)
        events(config, model=model, data=task)
    found = {}
    for (name, stage, start), end in zip(marks, [*[m[2] for m in marks[1:]], len(model.rows)], strict=True):
        part = list(zip(model.rows[start:end], model.dropped[start:end], strict=True))
        found.setdefault((name, stage), []).append(part)
    return found


def test_dropout_and_batches_are_the_same_for_all_candidates_and_differ_between_steps():
    found = recorded(emep_epochs=2)
    steps = math.ceil(72 / 16)
    for stage in (1, 2):
        first, *others = found["emep", stage]
        assert len(others) == 2
        assert len(first) == 2 * steps
        for other in others:
            assert [rows for rows, _ in other] == [rows for rows, _ in first]
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, other, strict=True))
    everything = [step for parts in found.values() for step in parts[0]]
    full = [dropped for _, dropped in everything if len(dropped) == 16]
    assert len({dropped.numpy().tobytes() for dropped in full}) == len(full)  # every step another dropout
    assert 0.4 < torch.stack(full).double().mean() < 0.6


def test_an_epoch_sees_every_row_once_in_an_order_of_seed_stage_phase_and_epoch():
    def orders(**settings):
        steps = math.ceil(72 / 16)
        return {
            (name, stage, epoch): [row for rows, _ in parts[0][epoch * steps : (epoch + 1) * steps] for row in rows]
            for (name, stage), parts in recorded(**settings).items()
            for epoch in range(len(parts[0]) // steps)
        }

    found = orders()
    assert len(found) == 2 + 2 * (1 + 2)
    assert all(sorted(order) == list(range(1, 73)) for order in found.values())
    assert len({tuple(order) for order in found.values()}) == len(found)
    plain = orders(method="imp", power=2.0)  # neither the method nor what it draws has a say
    assert plain == {key: order for key, order in found.items() if key[0] != "emep"}
    other = orders(seed=1)
    assert not [key for key in found if found[key] == other[key]]


def test_the_ambient_random_state_is_neither_read_nor_moved():
    config = tiny()

    def run(disturb):
        torch.manual_seed(disturb), np.random.seed(disturb), random.seed(disturb)  # noqa: NPY002, the ambient one
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        said = []
        for item in engine.prune(config, **tiny_parts()):
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
            assert torch.equal(after[0], before[0])
            assert after[1:] == before[1:]
            if not isinstance(item, Checkpoint):
                said.append(item)
        return said

    assert run(1) == run(2)


def test_the_ambient_random_state_is_left_alone_by_the_default_task_and_model():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    next(engine.prune(small()))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002


# ---- when it goes wrong


def test_a_dense_network_that_diverges_ends_the_run():
    with pytest.raises(Diverged, match=r"dense network trained, at step [1-9]\d*, learning rate 1e\+30") as caught:
        events(small(learning_rate=1e30))
    assert "Lower the learning rate" in str(caught.value)


@pytest.mark.parametrize("bad_step", [0, 1, 7, 50, 51, 67])
def test_the_first_bad_step_is_named(monkeypatch, bad_step):
    """The loss is looked at only now and then; the step that is named is where it went wrong all the same."""
    step = {"at": -1}
    loss = training.total

    def spoiled(terms, config, *, dense=False):
        step["at"] += not dense
        return loss(terms, config, dense=dense) + (math.nan if step["at"] >= bad_step else 0.0)

    monkeypatch.setattr(training, "total", spoiled)
    wrong = rf"in fine-tuning of stage 1 at step {bad_step}, learning rate (\S+)\."
    with pytest.raises(Diverged, match=wrong) as caught:
        events(small(method="imp", max_epochs=4))
    plan = fine_tuning_rate(small(max_epochs=4), 1, 17)
    assert f"learning rate {plan(bad_step):g}." in str(caught.value)


def test_a_last_step_that_ruins_the_weights_is_noticed_too():
    """One step an epoch: the loss is finite before it, and no training step comes after it."""
    with pytest.raises(Diverged, match=r"step 0, learning rate 1e\+30"):
        events(small(learning_rate=1e30, dense_epochs=1, batch_size=2000))


def test_a_candidate_whose_last_step_ruins_the_weights_has_no_score():
    said = []
    stream = engine.prune(small(emep_learning_rate=1e30, batch_size=2000, stages=(0.5,), candidates=2))
    with pytest.raises(Diverged, match=r"every candidate failed.*learning rate 1e\+30"):
        said.extend(stream)
    scored = [event for event in said if isinstance(event, CandidateScored)]
    assert [event.selection for event in scored] == [None, None]


# ---- precision


def test_bf16_and_float32_in_one_process():
    plain = events(tiny(), **tiny_parts())
    half = events(tiny(precision="bf16"), **tiny_parts())
    assert events(tiny(), **tiny_parts()) == plain
    assert events(tiny(precision="bf16"), **tiny_parts()) == half
    assert plain[1].loss != half[1].loss  # it really was another precision
    assert plain[1].loss == pytest.approx(half[1].loss, rel=0.05)


def test_weights_stay_float32_in_bf16():
    tensors = checkpoints(tiny(precision="bf16"), **tiny_parts())[-1].tensors
    assert {tensor.dtype for name, tensor in tensors.items() if name.endswith(".weight") and "model" in name} == {
        torch.float32
    }


# ---- distillation


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(temperature):
    answers = 5 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    student = answers[3:40].clone().requires_grad_()
    loss = logit_loss(student, answers[3:40], temperature)
    loss.backward()
    assert float(loss.detach()) == 0.0
    # softmax(s) - softmax(t) is 0; what the autograd of log_softmax leaves is float32's last bit
    assert float(student.grad.abs().max()) < 1e-7


def test_the_distillation_loss_is_hintons():
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(32, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (torch.softmax(logits / 3.0, dim=1) for logits in (teacher, student))
    expected = 9.0 * float((p * (p.log() - q.log())).sum(dim=1).mean())
    assert float(logit_loss(student, teacher, 3.0)) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_is_the_dense_network_and_never_changes(phases):
    parts = tiny_parts()
    first, dense = {}, None
    for item in engine.prune(tiny(), **parts):
        if isinstance(item, Checkpoint) and item.progress.phase == "scoring" and item.progress.stage == 1:
            dense = {n.removeprefix("model."): t for n, t in item.tensors.items() if n.startswith("model.")}
        for phase, _ in phases:
            if phase.session.teacher is not None:
                first.setdefault("logits", phase.session.teacher.logits.clone())
                assert torch.equal(phase.session.teacher.logits, first["logits"])
                assert not phase.session.teacher.logits.requires_grad
    model = tiny_model()
    model.load_state_dict(dense)
    assert torch.equal(first["logits"], all_logits(model, parts["data"].train.inputs))
    assert {phase.session.teacher is not None for phase, _ in phases} == {True}  # one session, one teacher


def test_without_weight_there_is_no_teacher_and_the_weights_count(phases):
    events(tiny(logit_weight=0), **tiny_parts())
    assert phases[-1][0].session.teacher is None
    results = {
        (task, logit): events(tiny(method="imp", task_weight=task, logit_weight=logit), **tiny_parts())[-1].test.loss
        for task, logit in ((1, 0), (0, 1), (1, 1), (1, 3))
    }
    assert len(set(results.values())) == 4


# ---- networks of other kinds


def test_convolutions_and_batch_norm():
    parts = conv_parts()
    said = checkpoints(tiny(), **parts)
    last = said[-1].tensors
    for name in ("0.weight", "5.weight"):
        shape = last[f"model.{name}"].shape
        mask = unpack(last[f"mask.{name}"], shape)
        assert int(mask.sum()) == shape.numel() - round(0.9 * shape.numel())
        assert not last[f"model.{name}"][~mask].any()
    assert {name for name in last if name.startswith("mask.")} == {"mask.0.weight", "mask.5.weight"}
    # candidates train, too: their batch statistics must not stay behind
    chosen = [c.tensors for c in said if c.progress.phase == "fine-tuning" and c.progress.epoch == 0]
    before = [c.tensors for c in said if c.progress.phase == "scoring"]
    for early, late in zip(before, chosen, strict=True):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(early[f"model.1.{name}"], late[f"model.1.{name}"])


def test_a_frozen_or_unused_layer_is_either_trained_around_or_refused_at_once():
    """A frozen backbone is what people bring. Refusing it is fine, too, but not after the dense training."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
            self.first.weight.requires_grad_(False)

        def forward(self, inputs):
            return self.last(torch.relu(self.first(inputs)))

    try:
        stream = engine.prune(tiny(), model=Frozen(), data=tiny_task())
    except ValueError:
        return
    assert isinstance(list(stream)[-1], RunFinished)


def test_layers_that_share_a_weight_are_either_pruned_once_or_refused_at_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.second.weight = self.first.weight

        def forward(self, inputs):
            return self.last(torch.relu(self.second(torch.relu(self.first(inputs)))))

    try:
        stream = engine.prune(tiny(), model=Tied(), data=tiny_task())
    except ValueError:
        return
    assert isinstance(list(stream)[-1], RunFinished)


def test_the_selection_split_is_always_the_same_share_of_train():
    inputs, labels = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    one, again = (Task.of((inputs, labels), (inputs[:5], labels[:5])) for _ in range(2))
    assert [len(one.train), len(one.selection), len(one.test)] == [40, 10, 5]
    assert torch.equal(one.train.inputs, again.train.inputs)
    rows = {tuple(row.tolist()) for split in (one.train, one.selection) for row in split.inputs}
    assert len(rows) == 50  # disjoint, and nothing is lost
