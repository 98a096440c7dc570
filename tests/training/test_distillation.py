"""The terms of the loss, against values worked out by hand and against slow loops in float64."""

import copy
import math

import pytest
import torch
from support import tiny_transformers
from torch import nn

from randprune_lab import engine
from randprune_lab.config import RunConfig
from randprune_lab.distill import (
    Features,
    Teacher,
    Unseen,
    all_logits,
    attention_loss,
    features,
    hidden_loss,
    logit_loss,
    loss_terms,
    total,
)
from randprune_lab.events import Checkpoint, DenseFinished, EpochFinished
from randprune_lab.metrics import task_loss
from randprune_lab.splits import Split, Task, Tokens

ALL = {"task_weight": 1.0, "logit_weight": 1.0, "hidden_weight": 1.0, "attention_weight": 1.0}
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
LOWEST = torch.finfo(torch.float32).min


def config(**changes) -> RunConfig:
    return RunConfig(**(ALL | {"device": "cpu"} | changes))


def network(name: str, seed: int = 0, **changes) -> nn.Module:
    model = tiny_transformers.build(name, seed=seed, attn_implementation="eager", **changes)
    if name == "gpt2":
        model.config.pad_token_id = 0
    return model


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Student and teacher."""
    return network(name, 1), network(name, 2)


def terms_of(student, teacher, inputs, settings=None, labels=None) -> dict[str, torch.Tensor]:
    settings = settings or config()
    labels = torch.arange(len(next(iter(inputs.values())))) % 2 if labels is None else labels
    asked = {"hidden": settings.hidden_weight > 0, "scores": settings.attention_weight > 0}
    with torch.no_grad():
        taught = features(teacher, inputs, **asked)
    return loss_terms(features(student, inputs, **asked), taught, inputs, labels, settings)


def numbers(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms.items()}


# The reference: loops over single numbers.


def slow_scores(model: nn.Module, hidden: list[torch.Tensor], layer: int) -> torch.Tensor:
    """q . k / sqrt(d) of every head, query and key, from the block's own weights."""
    x = hidden[layer]
    rows, tokens, width = x.shape
    if hasattr(model, "bert"):
        own = model.bert.encoder.layer[layer].attention.self
        query = x @ own.query.weight.T + own.query.bias
        key = x @ own.key.weight.T + own.key.bias
    else:
        block = model.transformer.h[layer]
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        normed = normed * block.ln_1.weight + block.ln_1.bias
        together = normed @ block.attn.c_attn.weight + block.attn.c_attn.bias  # in x out: query, key, value
        query, key = together[..., :width], together[..., width : 2 * width]
    size = width // 2
    scores = torch.zeros(rows, 2, tokens, tokens, dtype=torch.float64)
    for row in range(rows):
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            for at in range(tokens):
                for to in range(tokens):
                    scores[row, head, at, to] = query[row, at, part] @ key[row, to, part] / math.sqrt(size)
    return scores


@torch.no_grad()
def slow_terms(student, teacher, inputs, labels, temperature, layers=None) -> dict[str, float]:
    ours, theirs = copy.deepcopy(student).double().eval(), copy.deepcopy(teacher).double().eval()
    mine, other = (model(**inputs, output_hidden_states=True) for model in (ours, theirs))
    valid = inputs["attention_mask"].tolist()
    places = [(row, at) for row, line in enumerate(valid) for at, token in enumerate(line) if token]
    blocks = len(mine.hidden_states) - 1
    layers = layers or range(1, blocks + 1)
    causal = hasattr(student, "transformer")

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    def squares(one, two):
        return [
            (a - b) ** 2
            for row, at in places
            for a, b in zip(one[row, at].tolist(), two[row, at].tolist(), strict=True)
        ]

    hidden = mean(squares(mine.hidden_states[0], other.hidden_states[0]))
    attention = 0.0
    for block, taught in zip(range(1, blocks + 1), layers, strict=True):
        hidden += mean(squares(mine.hidden_states[block], other.hidden_states[taught]))
        one = slow_scores(ours, mine.hidden_states, block - 1)
        two = slow_scores(theirs, other.hidden_states, taught - 1)
        attention += mean(
            [
                float(one[row, head, at, to] - two[row, head, at, to]) ** 2
                for row, at in places
                for head in range(2)
                for to in range(len(valid[0]))
                if valid[row][to] and (to <= at or not causal)
            ]
        )
    return {
        "task": mean(
            [-log_softmax(row)[label] for row, label in zip(mine.logits.tolist(), labels.tolist(), strict=True)]
        ),
        "logits": slow_divergence(mine.logits.tolist(), other.logits.tolist(), temperature),
        "hidden": hidden,
        "attention": attention,
    }


def log_softmax(values: list[float]) -> list[float]:
    normalizer = math.log(math.fsum(math.exp(value) for value in values))
    return [value - normalizer for value in values]


def slow_divergence(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    """T^2 KL(teacher || student), mean over rows."""
    parts = []
    for ours, theirs in zip(student, teacher, strict=True):
        log_q = log_softmax([value / temperature for value in ours])
        log_p = log_softmax([value / temperature for value in theirs])
        parts.append(sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
    return temperature**2 * sum(parts) / len(parts)


# By hand.


def test_logit_loss_by_hand():
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3.0), 0.0]])
    # at T = 2 the teacher says 3/4, 1/4, the student 1/2, 1/2
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(logit_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)
    both = torch.cat([student, teacher])
    assert float(logit_loss(both, teacher.expand(2, 2), 2.0)) == pytest.approx(expected / 2, rel=1e-6)


def test_logit_loss_is_from_teacher_to_student():
    one, other = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert float(logit_loss(one, other, 1.0)) == pytest.approx(slow_divergence(one.tolist(), other.tolist(), 1.0))
    assert float(logit_loss(one, other, 1.0)) != pytest.approx(float(logit_loss(other, one, 1.0)), rel=0.01)


def test_logit_loss_of_a_regression():
    assert float(logit_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0], [2.0]]), 7.0, regression=True)) == 6.5


def test_hidden_loss_by_hand():
    student, teacher = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]]), torch.zeros(1, 3, 2)
    assert float(hidden_loss(student, teacher, torch.tensor([[1, 1, 0]]))) == (1 + 4 + 9 + 16) / 4
    assert float(hidden_loss(student, teacher)) == pytest.approx((1 + 4 + 9 + 16 + 81 + 81) / 6)


def test_hidden_loss_is_a_mean_over_tokens_not_over_rows():
    student = torch.tensor([[[1.0], [1.0], [1.0]], [[5.0], [7.0], [7.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert float(hidden_loss(student, torch.zeros(2, 3, 1), mask)) == (1 + 1 + 1 + 25) / 4


def test_attention_loss_by_hand():
    student = torch.tensor([[[[1.0, 2.0, LOWEST], [3.0, 4.0, LOWEST], [5.0, 5.0, LOWEST]]]])
    teacher = torch.tensor([[[[0.0, 0.0, LOWEST], [1.0, 1.0, LOWEST], [0.0, 0.0, LOWEST]]]])
    assert float(attention_loss(student, teacher, torch.tensor([[1, 1, 0]]))) == (1 + 4 + 4 + 9) / 4


def test_attention_loss_of_a_causal_model_by_hand():
    student = torch.tensor([[[[1.0, LOWEST], [3.0, 4.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, LOWEST], [1.0, 1.0]]]])
    loss = attention_loss(student, teacher, torch.tensor([[1, 1]]))
    assert float(loss.detach()) == pytest.approx((1 + 4 + 9) / 3)
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[[[2.0, 0.0], [4.0, 6.0]]]]) / 3)


@pytest.mark.parametrize("masked", [LOWEST, -math.inf, 2 * torch.tensor(LOWEST)])
def test_attention_loss_where_padding_and_future_were_added_up(masked):
    """The lowest number and a score give the lowest number or minus infinity."""
    student = torch.tensor([[[[1.0, float(masked)], [1.0, float(masked)]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, float(masked)], [3.0, float(masked)]]]])
    loss = attention_loss(student, teacher, torch.tensor([[1, 1]]))
    loss.backward()
    assert float(loss.detach()) == (1 + 4) / 2
    assert student.grad.isfinite().all()


def test_attention_loss_in_bfloat16():
    lowest = torch.finfo(torch.bfloat16).min
    student = torch.tensor([[[[1.0, lowest], [3.0, 4.0]]]], dtype=torch.bfloat16)
    teacher = torch.tensor([[[[0.0, lowest], [1.0, 1.0]]]], dtype=torch.bfloat16)
    loss = attention_loss(student, teacher, torch.tensor([[1, 1]]))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(14 / 3)


def test_task_loss_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    assert float(task_loss(logits, torch.tensor([0, 1]))) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_task_loss_skips_rows_without_a_label():
    answers = torch.tensor([[1.0], [2.0], [5.0]], requires_grad=True)
    loss = task_loss(answers, torch.tensor([0.0, math.nan, 2.0]))
    loss.backward()
    # (1 - 0)^2 and (5 - 2)^2 over all three rows, so that a labelled row weighs the same in every batch
    assert float(loss.detach()) == pytest.approx(10 / 3)
    assert answers.grad.flatten().tolist() == pytest.approx([2 / 3, 0.0, 2.0])


def test_task_loss_without_any_label():
    answers = torch.tensor([[1.0], [2.0]], requires_grad=True)
    loss = task_loss(answers, torch.tensor([math.nan, math.nan]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert answers.grad.flatten().tolist() == [0.0, 0.0]


def test_rows_without_a_label_still_teach_by_distillation():
    student, teacher = Features(torch.tensor([[1.0], [2.0]])), Features(torch.tensor([[1.0], [4.0]]))
    settings = config(hidden_weight=0.0, attention_weight=0.0)
    terms = loss_terms(student, teacher, torch.zeros(2, 1), torch.tensor([3.0, math.nan]), settings)
    assert numbers(terms) == {"task": 2.0, "logits": 2.0}


# Against the loops.


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_terms_against_slow_loops(name, temperature):
    student, teacher = pair(name)
    inputs, labels = tiny_transformers.batch(name), torch.tensor([1, 0, 0, 1])
    assert inputs["attention_mask"].min() == 0, "needs padding"
    terms = terms_of(student, teacher, inputs, config(temperature=temperature), labels)
    assert list(terms) == ["task", "logits", "hidden", "attention"]
    assert numbers(terms) == pytest.approx(slow_terms(student, teacher, inputs, labels, temperature), rel=2e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_hidden_states_are_those_of_embeddings_and_blocks(name):
    model, inputs, seen = network(name), tiny_transformers.batch(name), []

    def see(_module, _arguments, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    parts = (
        [model.bert.embeddings, *model.bert.encoder.layer]
        if name == "bert"
        else [model.transformer.drop, model.transformer.h[0], model.transformer.ln_f]  # the last, as always, is normed
    )
    for part in parts:
        part.register_forward_hook(see)
    with torch.no_grad():
        found = features(model, inputs, hidden=True)
    assert found.scores == ()
    assert len(found.hidden) == len(seen) == 3
    assert all(torch.equal(one, other) for one, other in zip(found.hidden, seen, strict=True))


@pytest.mark.parametrize("name", tiny_transformers.ARCHITECTURES)
def test_softmax_of_the_scores_is_the_attention(name):
    model, inputs = network(name), tiny_transformers.batch(name)
    with torch.no_grad():
        found = features(model, inputs, hidden=True, scores=True)
        answer = model(**inputs, output_attentions=True)
    assert len(found.scores) == len(answer.attentions) == len(found.hidden) - 1 == (5 if name == "bert-deep" else 2)
    mask = inputs.get("attention_mask", torch.ones(found.scores[0].shape[0], found.scores[0].shape[-1]))
    for scores, attention in zip(found.scores, answer.attentions, strict=True):
        rows = (mask > 0)[:, None, :, None].expand_as(scores)  # what padding looks at is nobody's business
        torch.testing.assert_close(scores.softmax(-1)[rows], attention[rows])
    assert torch.equal(found.logits, answer.logits)


@pytest.mark.parametrize("name", tiny_transformers.ARCHITECTURES)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name):
    student, inputs = network(name), tiny_transformers.batch(name)
    terms = terms_of(student, copy.deepcopy(student), inputs)
    assert all(abs(numbers(terms)[part]) <= 1e-6 for part in ("logits", "hidden", "attention"))


@pytest.mark.parametrize("name", tiny_transformers.TEXT)
def test_padding_changes_no_term(name):
    """In float32 within rounding, which the logits' term, a small difference of larger numbers, feels most."""
    student, teacher = pair(name)
    batches = [tiny_transformers.batch(name, extra=extra) for extra in (0, 16)]
    short, long = (numbers(terms_of(student, teacher, batch)) for batch in batches)
    assert long == pytest.approx(short, rel=1e-6, abs=1e-6)
    short, long = (numbers(terms_of(student.double(), teacher.double(), batch)) for batch in batches)
    assert long == pytest.approx(short, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("name", tiny_transformers.TEXT)
def test_every_gradient_is_finite_and_padding_changes_none(name):
    student, teacher = pair(name)
    gradients = []
    for extra in (0, 9):
        student.zero_grad()
        total(terms_of(student, teacher, tiny_transformers.batch(name, extra=extra)), config()).backward()
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
        assert all(gradient.isfinite().all() for gradient in gradients[-1].values())
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2", "deberta-v2"])
def test_half_precision_has_finite_terms_and_gradients(name):
    student, teacher = pair(name)
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(student, teacher, tiny_transformers.batch(name))
    exact = terms_of(student, teacher, tiny_transformers.batch(name))
    total(terms, config()).backward()
    assert numbers(terms) == pytest.approx(numbers(exact), rel=0.1, abs=0.02)
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", tiny_transformers.TEXT)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_mask_that_hides_nothing_may_stay(name, rows):
    """On a GPU transformers is kept from looking whether there is padding: with one row there is none."""
    model, inputs = tiny_transformers.build(name), tiny_transformers.batch(name, rows)
    model.config.pad_token_id = 0 if name == "gpt2" else model.config.pad_token_id
    with torch.no_grad():
        plain = model(**inputs).logits
        with Unseen():
            unseen = model(**inputs).logits
    torch.testing.assert_close(unseen, plain, rtol=1e-4, atol=1e-5)


# Which terms, which weights.


def test_weights_add_up():
    parts = {name: torch.tensor(value) for name, value in [("task", 2.0), ("logits", 3.0), ("hidden", 5.0)]}
    settings = config(task_weight=0.5, logit_weight=2.0, hidden_weight=0.1)
    assert float(total(parts, settings)) == pytest.approx(1 + 6 + 0.5)
    assert float(total(parts, settings, dense=True)) == 2.0


@pytest.mark.parametrize("left", [("task",), ("logits",), ("hidden",), ("attention",), ("task", "attention")])
def test_only_the_terms_in_use_are_made(left):
    weight = {
        "task": "task_weight",
        "logits": "logit_weight",
        "hidden": "hidden_weight",
        "attention": "attention_weight",
    }
    settings = config(**{field: float(name in left) for name, field in weight.items()})
    student, teacher = pair("bert")
    assert tuple(terms_of(student, teacher, tiny_transformers.batch("bert"), settings)) == left


def test_without_a_teacher_only_the_task_counts():
    terms = loss_terms(Features(torch.zeros(2, 2)), None, torch.zeros(2, 1), torch.tensor([0, 1]), config())
    assert list(terms) == ["task"]


# A teacher of another size.


def test_a_smaller_student_learns_from_the_blocks_of_its_map():
    student, teacher = network("bert", 1), network("bert", 2, num_hidden_layers=4)
    inputs, labels = tiny_transformers.batch("bert"), torch.tensor([0, 1, 1, 0])
    settings = config(teacher="folder", layer_map=(2, 4))
    terms = terms_of(student, teacher, inputs, settings, labels)
    expected = slow_terms(student, teacher, inputs, labels, settings.temperature, layers=(2, 4))
    assert numbers(terms) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), "--layer-map 2,4"),
        ((2,), "layer_map names 1"),
        ((2, 3, 4), "layer_map names 3"),
        ((2, 5), "1 to 4"),
        ((0, 2), "1 to 4"),
    ],
)
@pytest.mark.parametrize("part", ["hidden_weight", "attention_weight"])
def test_a_map_that_does_not_fit_is_refused(layers, said, part):
    student, teacher = network("bert", 1), network("bert", 2, num_hidden_layers=4)
    settings = config(teacher="folder", layer_map=layers, hidden_weight=0.0, attention_weight=0.0).model_copy(
        update={part: 1.0}
    )
    with pytest.raises(ValueError, match=said):
        terms_of(student, teacher, tiny_transformers.batch("bert"), settings)


def test_a_teacher_of_another_width_is_refused():
    student, teacher = network("bert", 1), network("bert", 2, hidden_size=32)
    inputs = tiny_transformers.batch("bert")
    with pytest.raises(ValueError, match=r"hidden_weight.*16.*32"):
        terms_of(student, teacher, inputs)
    terms = terms_of(student, teacher, inputs, config(hidden_weight=0.0))  # scores know no width
    assert math.isfinite(numbers(terms)["attention"])


def test_a_teacher_with_other_heads_is_refused():
    student, teacher = network("bert", 1), network("bert", 2, num_attention_heads=4)
    with pytest.raises(ValueError, match="attention_weight"):
        terms_of(student, teacher, tiny_transformers.batch("bert"), config(hidden_weight=0.0))


def test_attention_that_cannot_be_seen_is_refused():
    model = tiny_transformers.build("bert", attn_implementation="sdpa")
    with pytest.raises(ValueError, match="eager"):
        features(model, tiny_transformers.batch("bert"), scores=True)


@pytest.mark.parametrize("weight", ["hidden_weight", "attention_weight"])
def test_a_plain_network_has_no_blocks(weight):
    with pytest.raises(ValueError, match=f"{weight}.*Set both to 0"):
        list(engine.prune(RunConfig(task="digits", model="mlp", device="cpu", **{weight: 1.0})))


# In a run.


def tokens(name: str, rows: int, seed: int) -> Tokens:
    ids = tiny_transformers.tokenizer(name)(tiny_transformers.sentences(rows, seed)[0])["input_ids"]
    starts = torch.tensor([0, *(len(row) for row in ids)]).cumsum(0)
    return Tokens(torch.tensor([number for row in ids for number in row], dtype=torch.int32), starts, pad=0)


def task(name: str) -> Task:
    """12 rows to learn from: one step an epoch."""
    parts = [Split(tokens(name, 12, seed), torch.arange(12) % 2) for seed in range(3)]
    return Task("own", *parts)


def one_step(**changes) -> RunConfig:
    return config(
        **(
            {
                "method": "imp",
                "stages": (0.5,),
                "dense_epochs": 0,
                "max_epochs": 1,
                "batch_size": 12,
                "task_weight": 0.5,
                "logit_weight": 2.0,
                "hidden_weight": 0.25,
                "attention_weight": 3.0,
                "temperature": 1.5,
            }
            | changes
        )
    )


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_first_step_of_a_run_against_slow_loops(name):
    """Of a network that was loaded with sdpa; every term is told, and the loss is their weighted sum."""
    model = tiny_transformers.build(name, seed=4, attn_implementation="sdpa", **NO_DROPOUT[name])
    if name == "gpt2":
        model.config.pad_token_id = 0
    teacher = network(name, 4)
    student = network(name, 4)
    settings, data = one_step(), task(name)
    items = list(engine.prune(settings, model=model, data=data))
    masked = next(item for item in items if isinstance(item, Checkpoint) and item.progress.phase == "fine-tuning")
    state = {key.removeprefix("model."): value for key, value in masked.tensors.items() if key.startswith("model.")}
    assert sum(int((value == 0).sum()) for value in state.values()) > 1000
    student.load_state_dict(state)
    inputs, labels = data.train.batch(torch.arange(12))
    expected = slow_terms(student, teacher, inputs, labels, 1.5)
    told = next(item for item in items if isinstance(item, EpochFinished) and item.phase == "fine-tuning")
    assert told.terms == pytest.approx(expected, rel=2e-5)
    assert told.loss == pytest.approx(
        0.5 * expected["task"] + 2 * expected["logits"] + 0.25 * expected["hidden"] + 3 * expected["attention"],
        rel=2e-5,
    )


def test_logits_of_a_run_that_need_no_teacher_at_hand():
    """Only the logits count: the teacher answers every row once, before, and the terms are the same."""
    model = tiny_transformers.build("bert", seed=4, **NO_DROPOUT["bert"])
    settings = one_step(hidden_weight=0.0, attention_weight=0.0, batch_size=5, max_epochs=2)
    short = [item for item in engine.prune(settings, model=model, data=task("bert")) if isinstance(item, EpochFinished)]
    model = tiny_transformers.build("bert", seed=4, **NO_DROPOUT["bert"])
    settings = settings.model_copy(update={"hidden_weight": 1e-12})
    long = [item for item in engine.prune(settings, model=model, data=task("bert")) if isinstance(item, EpochFinished)]
    assert [set(event.terms) for event in short] == [{"task", "logits"}] * 2
    for one, other in zip(short, long, strict=True):
        assert other.terms["logits"] == pytest.approx(one.terms["logits"], rel=1e-3)
        assert one.loss == pytest.approx(0.5 * one.terms["task"] + 2 * one.terms["logits"], rel=1e-5)


def test_teacher_finds_the_rows_of_a_batch():
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([4, 1])
    assert torch.equal(Teacher(config(), logits=logits).features(torch.zeros(2, 1), rows).logits, logits[rows])


def test_all_logits_keep_the_order_and_the_mode():
    model, inputs = network("bert").train(), tokens("bert", 12, 0)
    answers = all_logits(model, inputs, batch_size=5)
    assert model.training
    model.eval()
    for row in range(12):
        with torch.no_grad():
            alone = model(**inputs[torch.tensor([row])]).logits[0]
        torch.testing.assert_close(answers[row], alone, rtol=1e-4, atol=1e-5)


@pytest.fixture
def words(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("RANDPRUNE_CACHE", str(tmp_path / "cache"))
    return tiny_transformers.dataset(tmp_path)


def text_run(words: str, model: str, **changes) -> RunConfig:
    return one_step(**({"task": "text", "dataset": words, "text_columns": ("sentence",), "model": model} | changes))


def test_a_run_with_a_deeper_teacher(words, tmp_path):
    student = tiny_transformers.checkpoint(tmp_path / "student", "bert", **NO_DROPOUT["bert"])
    teacher = tiny_transformers.checkpoint(tmp_path / "teacher", "bert", seed=3, num_hidden_layers=4)
    settings = text_run(words, student, teacher=teacher, layer_map=(2, 4), batch_size=64)
    items = list(engine.prune(settings))
    masked = next(item for item in items if isinstance(item, Checkpoint) and item.progress.phase == "fine-tuning")
    ours = network("bert")
    ours.load_state_dict({k.removeprefix("model."): v for k, v in masked.tensors.items() if k.startswith("model.")})
    run = engine._Run(settings, {}, None)  # only to have the same rows
    train = run.session.task.train
    inputs, labels = train.batch(torch.arange(len(train)))
    expected = slow_terms(ours, network("bert", 3, num_hidden_layers=4), inputs, labels, 1.5, layers=(2, 4))
    assert next(item for item in items if isinstance(item, EpochFinished)).terms == pytest.approx(expected, rel=2e-5)


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(words, tmp_path):
    student = tiny_transformers.checkpoint(tmp_path / "student", "bert")
    teacher = tiny_transformers.checkpoint(tmp_path / "teacher", "bert", num_hidden_layers=4)
    seen = []
    with pytest.raises(ValueError, match="--layer-map 2,4"):
        seen.extend(engine.prune(text_run(words, student, teacher=teacher, dense_epochs=1)))
    assert not any(isinstance(item, EpochFinished | DenseFinished) for item in seen)


def test_a_missing_teacher_is_refused_before_anything_is_trained(words, tmp_path):
    student = tiny_transformers.checkpoint(tmp_path / "student", "bert")
    seen = []
    with pytest.raises(ValueError, match="nowhere"):
        seen.extend(engine.prune(text_run(words, student, teacher=str(tmp_path / "nowhere"), dense_epochs=1)))
    assert not any(isinstance(item, EpochFinished | DenseFinished) for item in seen)


def test_a_teacher_without_a_trained_head_is_refused(words, tmp_path):
    """It would answer at random."""
    student = tiny_transformers.checkpoint(tmp_path / "student", "bert")
    tiny_transformers.checkpoint(tmp_path / "teacher", "bert")
    tiny_transformers.build("bert").bert.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="teacher"):
        list(engine.prune(text_run(words, student, teacher=str(tmp_path / "teacher"))))


def test_a_gpt2_teacher_knows_what_padding_is(words, tmp_path):
    student = tiny_transformers.checkpoint(tmp_path / "student", "gpt2")
    teacher = tiny_transformers.checkpoint(tmp_path / "teacher", "gpt2", seed=3)
    told = [item for item in engine.prune(text_run(words, student, teacher=teacher)) if isinstance(item, EpochFinished)]
    assert set(told[0].terms) == {"task", "logits", "hidden", "attention"}
