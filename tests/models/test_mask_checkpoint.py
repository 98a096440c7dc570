"""Masks for sharded checkpoints: the same as a run's, whatever the pieces, and whenever it was killed."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import filelock
import numpy as np
import pytest
import scipy
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import tiny_transformers
from support.runs import read_tensors

from randprune_lab import pieces, sharded, stored_masks
from randprune_lab.cli_scale import peak_memory
from randprune_lab.config import RunConfig
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.masks import stage_masks
from randprune_lab.pieces import Part, histograms, largest, merged, vector_mask
from randprune_lab.sampling import candidate_generator, introduced_randomness, magnitude_mask, mask_sampler
from randprune_lab.sharded import mask_checkpoint
from randprune_lab.shards import open_checkpoint
from randprune_lab.stored_masks import MaskSettings

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FALSE_ALARM = 1e-6  # of each statistical test here; seeds are fixed


def parts_of(tensors: dict[str, torch.Tensor]) -> list[Part]:
    return [Part(name, len(tensor), tensor.dtype, lambda tensor=tensor: tensor) for name, tensor in tensors.items()]


def kept_by(mask: pieces.VectorMask, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mask, as one vector, found by applying it to ones of a weight's own magnitude."""
    found = []
    for name, tensor in tensors.items():
        weight = tensor.clone()
        kept, _ = mask.apply(name, weight)
        same = weight == tensor
        pruned = (weight == 0) & (tensor != 0)
        assert bool((same | pruned).all())
        assert kept >= int((weight != 0).sum())  # zeros may be kept
        found.append(~pruned & (tensor != 0))
    return torch.cat(found)


# The pieces


@st.composite
def vectors(draw):
    """One to four tensors of any type, with ties within and between them, and zeros."""
    tensors = {}
    for number in range(draw(st.integers(1, 4))):
        values = draw(
            st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0001, 1.00005, 1e-7, 2.0, -3.5, 1e30]), max_size=40)
        )
        dtype = draw(st.sampled_from(DTYPES[1:]))
        tensors[f"t{number}"] = torch.tensor(values or [1.0], dtype=dtype)
    return tensors


@given(tensors=vectors(), sparsity=st.floats(0, 0.99), piece=st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_the_plain_mask_by_pieces_is_that_of_the_whole_vector(tensors, sparsity, piece):
    whole = torch.cat([tensor.double() for tensor in tensors.values()])
    expected = magnitude_mask(whole, sparsity)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", piece)
        parts = parts_of(tensors)
        mask = vector_mask(parts, histograms(parts), None, int(expected.sum()))
        kept = [mask.apply(name, tensor.clone()) for name, tensor in tensors.items()]
        assert torch.equal(kept_by(mask, tensors), expected & (whole != 0))
    assert sum(number for number, _ in kept) == int(expected.sum())
    assert all(moved == 0 for _, moved in kept)
    assert mask.plain.magnitude == (float(whole[expected].abs().min()) if expected.any() else math.inf)


def normal_parts(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, generator=generator).to(dtype) for name, n in (("a", 2500), ("b", 1), ("c", 1700))}


def settled(tensors, sparsity, *, candidate=1, seed=0, **law):
    parts = parts_of(tensors)
    of_parts = histograms(parts)
    curve = KeepCurve.of(merged(of_parts), sparsity, **({"samples": 4} | law))
    return vector_mask(parts, of_parts, curve, curve.keep, (seed, 1, candidate))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reach", [None, 1.0, 1.15])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.9999])
def test_the_random_mask_keeps_exactly_as_many_of_what_can_be_drawn(dtype, reach, sparsity, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 700)
    tensors = normal_parts(dtype=dtype)
    whole = torch.cat(list(tensors.values()))
    keep = len(whole) - round(sparsity * len(whole))
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002, it must not move
    one, again, other = (kept_by(settled(tensors, sparsity, reach=reach, candidate=c), tensors) for c in (1, 1, 2))
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    assert int(one.sum()) == int(other.sum()) == keep
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (sparsity == 0.0 or reach == 1.0 or keep == 0)
    if reach is not None:
        ranked = whole.abs().double().sort(descending=True, stable=True).indices
        assert not bool(one[ranked[round(reach * keep) :]].any())


def test_what_it_counts_as_moved_is_what_the_plain_mask_prunes():
    tensors = normal_parts()
    whole = torch.cat(list(tensors.values()))
    plain = magnitude_mask(whole, 0.8)
    mask = settled(tensors, 0.8, samples=1)
    moved = sum(mask.apply(name, tensor.clone())[1] for name, tensor in tensors.items())
    assert moved == int((kept_by(mask, tensors) & ~plain).sum()) > 0


@pytest.mark.parametrize(("dtype", "reach"), [(torch.float32, None), (torch.bfloat16, 1.3)])
def test_the_random_mask_by_pieces_follows_the_law_of_the_sampler(dtype, reach, monkeypatch):
    """Inclusion by magnitude, and mean and spread of ir, of 300 masks each."""
    monkeypatch.setattr(pieces, "PIECE", 999)
    tensors, draws, buckets = normal_parts(dtype=dtype), 300, 24
    whole = torch.cat(list(tensors.values()))
    plain = magnitude_mask(whole, 0.8)
    sampler = mask_sampler(whole, 0.8, samples=4, reach=reach)
    parts = parts_of(tensors)
    of_parts = histograms(parts)
    curve = KeepCurve.of(merged(of_parts), 0.8, samples=4, reach=reach)
    ours = [kept_by(vector_mask(parts, of_parts, curve, curve.keep, (0, 1, c)), tensors) for c in range(1, draws + 1)]
    theirs = [sampler(candidate_generator(7, 1, c, "*")) for c in range(draws)]
    order = whole.abs().double().argsort(stable=True)

    def by_bucket(masks):
        return np.stack([[part.double().mean() for part in mask[order].tensor_split(buckets)] for mask in masks])

    def same(one, other):
        """Means within six standard errors (2e-9 for one normal number), and 1e-4 where next to nothing is random."""
        error = np.sqrt((one.var(0) + other.var(0)) / draws)
        assert (abs(one.mean(0) - other.mean(0)) <= 6 * error + 1e-4).all()

    same(by_bucket(ours), by_bucket(theirs))
    irs = [np.array([[introduced_randomness(mask, plain)] for mask in masks]) for masks in (ours, theirs)]
    same(*irs)
    spread = scipy.stats.levene(irs[0][:, 0], irs[1][:, 0]).pvalue
    assert spread > FALSE_ALARM
    # How many of the first piece, and of the first part: were they shared out beforehand, that would vary too little.
    for length in (999, 2500):
        shares = [np.array([[float(mask[:length].double().mean())] for mask in masks]) for masks in (ours, theirs)]
        same(*shares)
        assert scipy.stats.levene(shares[0][:, 0], shares[1][:, 0]).pvalue > FALSE_ALARM


def test_the_largest_keys_by_group_are_those_of_keys_drawn_one_by_one():
    odds, counts, number, draws = np.array([-3.0, -0.5, 0.4, 8.0]), np.array([500, 60, 40, 30]), 90, 1500
    numbers = np.random.default_rng(3)
    ours = np.stack([pieces._among_largest_keys(odds, counts, number, numbers) for _ in range(draws)])
    group = np.repeat(np.arange(4), counts)
    keys = odds[group] - scipy.special.logit(numbers.random((draws, counts.sum())))
    theirs = np.stack([np.bincount(group[row.argsort()[-number:]], minlength=4) for row in keys])
    assert (ours.sum(1) == number).all()
    assert ((ours >= 0) & (ours <= counts)).all()
    for column in range(3):  # the fourth group is nearly certain
        assert scipy.stats.ttest_ind(ours[:, column], theirs[:, column]).pvalue > FALSE_ALARM
        assert scipy.stats.levene(ours[:, column], theirs[:, column]).pvalue > FALSE_ALARM
    assert abs(ours[:, 3] - theirs[:, 3].mean()).mean() < 0.2


@given(
    odds=st.lists(st.floats(-35, 35), min_size=1, max_size=6),
    counts=st.lists(st.integers(0, 10**8), min_size=6, max_size=6),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=80)
def test_so_many_keys_are_the_largest(odds, counts, share):
    counts = np.array(counts[: len(odds)])
    number = int(share * counts.sum())
    taken = pieces._among_largest_keys(np.array(odds), counts, number, np.random.default_rng(0))
    assert taken.sum() == number
    assert ((taken >= 0) & (taken <= counts)).all()


def test_some_of_each_group_every_member_as_often():
    groups = torch.tensor([0, 2, 2, 0, 2, 2, 1, 0, 2, 0])  # group 1 gives its only one, group 3 has none
    generator, draws = torch.Generator().manual_seed(1), 3000
    often = torch.zeros(10)
    for _ in range(draws):
        places = pieces._some_of_each(groups, np.array([1, 1, 3, 0]), generator)
        assert len(places.unique()) == 5
        often[places] += 1
    expected = torch.tensor([1 / 4, 3 / 5, 3 / 5, 1 / 4, 3 / 5, 3 / 5, 1, 1 / 4, 3 / 5, 1 / 4]) * draws
    deviation = (expected * (1 - expected / draws)).sqrt().clamp(min=0.1)
    assert float(((often - expected) / deviation).abs().max()) < 5.5  # 4e-7 for ten normal ones


def test_a_bin_with_too_many_weights_is_refused():
    histogram = MagnitudeHistogram(np.array([4096 * 120]), np.array([2 * 10**9]), 2 * 10**9)
    curve = KeepCurve.of(histogram, 0.5, samples=1)
    with pytest.raises(ValueError, match="go up to 10"):
        vector_mask([Part("a", 2 * 10**9, torch.bfloat16, lambda: None)], {"a": histogram}, curve, 10**9)


def test_halves_are_not_read_again_to_be_cut():
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0)).bfloat16()
    histogram = MagnitudeHistogram.of(weight)

    def refuse():
        raise AssertionError

    (cut,) = largest([Part("a", 500, torch.bfloat16, refuse)], {"a": histogram}, [123])
    assert cut.magnitude == float(weight.abs().float().sort(descending=True).values[122])


# Checkpoints

# The same weights once more: they must not come along with masked ones.
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DENSE = (*PICKLED, "onnx/model.onnx", "onnx/model.onnx_data", "rust_model.ot", "checkpoint-9/model.safetensors")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A tiny BERT in several shards, with a tokenizer and a card."""
    folder = tmp_path_factory.mktemp("checkpoints") / "bert"
    model = tiny_transformers.build("bert")
    model.save_pretrained(folder, max_shard_size="6KB")
    tiny_transformers.tokenizer("bert").save_pretrained(folder)
    (folder / "README.md").write_text("the old card")
    for name in DENSE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"dense weights")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def small_file(tmp_path) -> Path:
    """Four matrices in one file; their names hold a sign that Markdown takes for the end of a cell."""
    tensors = {f"layers.0.m{place}|x.weight": torch.randn(4, 4) for place in range(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in read_tensors(file).items()}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def masks_of_a_run(folder: Path, *, candidate: int, **config) -> dict[str, torch.Tensor]:
    """``masks.stage_masks`` of the prunable tensors, in the checkpoint's order."""
    stored, tensors = open_checkpoint(folder), tensors_of(folder)
    weights = {name: tensors[name] for name in stored.prunable}
    sparsity = config.pop("sparsity")
    run = RunConfig(stages=(sparsity,), **config)
    return stage_masks(weights, {name: weight != 0 for name, weight in weights.items()}, 1, run).draw(candidate)


def masked(folder: Path, out: Path, **fields) -> dict:
    return mask_checkpoint(folder, out, MaskSettings(**fields))


RANDOM = {"sparsity": 0.7, "candidate": 2, "samples": 3, "reach": 1.5, "seed": 5}


@pytest.mark.parametrize("fields", [{"sparsity": 0.7}, {"sparsity": 0.7, "scope": "global"}, RANDOM])
def test_the_masks_are_those_of_a_run_bit_for_bit(bert, tmp_path, fields):
    record = masked(bert, tmp_path / "out", **fields)
    expected = masks_of_a_run(bert, **({"candidate": 0} | fields))
    before, after = tensors_of(bert), tensors_of(tmp_path / "out")
    assert len(expected) == 12  # six matrices in each of two blocks
    assert before.keys() == after.keys()
    for name, weight in before.items():
        want = weight.masked_fill(~expected[name], 0) if name in expected else weight
        assert torch.equal(after[name], want), name
    kept = sum(int(mask.sum()) for mask in expected.values())
    assert (record["totals"]["kept"], record["totals"]["tensors"]) == (kept, 12)


def test_a_random_mask_of_all_tensors_together_keeps_exactly_as_many(bert, tmp_path):
    fields = RANDOM | {"scope": "global"}
    record = masked(bert, tmp_path / "out", **fields)
    theirs = torch.cat([mask.reshape(-1) for mask in masks_of_a_run(bert, **fields).values()])
    names = open_checkpoint(bert).prunable
    before, after = tensors_of(bert), tensors_of(tmp_path / "out")
    flat = torch.cat([before[name].reshape(-1) for name in names])
    ours = torch.cat([after[name].reshape(-1) for name in names]) != 0
    plain = magnitude_mask(flat, 0.7)
    assert int(ours.sum()) == int(theirs.sum()) == record["totals"]["kept"]
    assert record["totals"]["ir"] == pytest.approx(introduced_randomness(ours, plain))
    expected = KeepCurve.of(flat, 0.7, samples=3, reach=1.5).expected_ir
    assert record["totals"]["ir"] == pytest.approx(expected, rel=0.2)  # one draw


def test_tensors_that_are_masked_by_pieces_are_masked_independently(tmp_path, monkeypatch):
    """Four times the same weights: with one stream for all, as many of each magnitude would be kept of each."""
    monkeypatch.setattr(stored_masks, "WHOLE", 0)
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({f"layers.0.m{place}.weight": weight.clone() for place in range(4)}, tmp_path / "model.safetensors")
    masked(tmp_path / "model.safetensors", tmp_path / "out", sparsity=0.5, candidate=1, samples=1)
    kept = [tuple(after.abs().float().histc(50).tolist()) for after in tensors_of(tmp_path / "out").values()]
    assert len(set(kept)) == 4


def test_it_loads_as_any_model_does(bert, tmp_path):
    masked(bert, tmp_path / "out", sparsity=0.5)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    weight = model.bert.encoder.layer[1].attention.self.query.weight
    assert float((weight == 0).double().mean()) == 0.5
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("the plot")["input_ids"]


def test_all_else_stays_and_the_record_and_the_card_tell(bert, tmp_path):
    out = tmp_path / "out"
    record = masked(bert, out, **RANDOM)
    old, new = content(bert), content(out)
    assert new.keys() - old.keys() == {"mask.json", "README-before.md"}
    assert old.keys() - new.keys() == set(DENSE)
    for name in old.keys() & new.keys() - {"README.md"}:
        if name.endswith(".safetensors"):  # the same header
            length = 8 + int.from_bytes(old[name][:8], "little")
            assert old[name][:length] == new[name][:length]
            assert len(old[name]) == len(new[name])
        else:
            assert old[name] == new[name]
    assert new["README-before.md"] == b"the old card"
    assert json.loads(new["mask.json"]) == record
    card = new["README.md"].decode()
    totals, size = record["totals"], 12
    assert f"{totals['kept']:,} are kept" in card
    assert "No fine-tuning happened" in card
    assert card.count("| `bert.encoder") == size
    assert "Random mask no. 2 was applied" in card
    assert str(tmp_path) not in card
    assert totals["prunable"] == sum(facts["size"] for shard in record["shards"].values() for facts in shard.values())
    after = tensors_of(out)
    for shard in record["shards"].values():
        for name, facts in shard.items():
            assert facts["kept"] == int((after[name] != 0).sum())
            assert facts["samples"] == 3
            assert 0 < facts["ir"] < 1


def test_the_card_of_a_plain_mask_tells_of_no_randomness(small_file, tmp_path):
    masked(small_file, tmp_path / "out", sparsity=0.5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "plain magnitude mask was applied" in card
    assert not re.search(r"\bir\b|random|swapped", card)
    assert "| `layers.0.m3\\|x.weight` | 16 | 8 | 0.5000 |" in card


def test_every_type_keeps_its_own(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layers.{layer}.m{place}.weight": torch.randn(6, 8, generator=generator).to(dtype)
        for layer in range(3)
        for place, dtype in enumerate(DTYPES)
    }
    tensors |= {
        "embed.weight": torch.randn(9, 6),
        "norm.weight": torch.ones(6),
        "count": torch.tensor(3),
        "none": torch.ones(0),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt", "by": "somebody"})
    for scope in ("layer", "global"):
        record = masked(tmp_path / "model.safetensors", tmp_path / f"out-{scope}", sparsity=0.5, scope=scope)
        after = tensors_of(tmp_path / f"out-{scope}")
        assert {name: value.dtype for name, value in after.items()} == {name: t.dtype for name, t in tensors.items()}
        assert record["totals"]["kept"] == 12 * 24
        for name in ("embed.weight", "norm.weight", "count", "none"):
            assert torch.equal(after[name], tensors[name])


def test_what_is_quantized_is_left_alone_and_its_scales_too(tmp_path):
    tensors = {f"layers.0.m{place}.weight": torch.randn(4, 4) for place in range(4)}
    tensors |= {"layers.0.q.qweight": torch.ones(4, 4, dtype=torch.int32), "layers.0.q.scales": torch.randn(2, 4)}
    tensors |= {"layers.0.e.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "layers.0.e.scale": torch.randn(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    record = masked(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", sparsity=0.5)
    assert list(record["shards"]["model.safetensors"]) == [f"layers.0.m{place}.weight" for place in range(4)]
    assert record["totals"]["quantized"] == 4


@pytest.mark.parametrize("matrix", ["uint8", "int8", "float8_e4m3fn"])
def test_of_a_quantized_checkpoint_the_embeddings_are_left_alone(tmp_path, matrix):
    """bitsandbytes' 4 and 8 bits, and FP8 with a scale per tensor: no floating-point matrix lies in the blocks."""
    tensors = {"embed.weight": torch.randn(9, 4), "lm_head.weight": torch.randn(9, 4)}
    for layer in range(2):
        for place in range(4):
            name = f"layers.{layer}.m{place}.weight"
            tensors |= {name: torch.ones(4, 4).to(getattr(torch, matrix)), f"{name}_scale": torch.ones(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).prunable == ()
    for include in ((), ("layers",)):
        with pytest.raises(ValueError, match=r"nothing to prune: its matrices are quantized \(8 of them"):
            masked(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", sparsity=0.5, include=include)


def test_patterns_choose(bert, tmp_path):
    record = masked(bert, tmp_path / "out", sparsity=0.5, include=("query", "key"), exclude=("layer.1",))
    names = [name for shard in record["shards"].values() for name in shard]
    assert sorted(names) == [f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("key", "query")]


def test_a_target_out_of_reach_is_told(bert, tmp_path):
    record = masked(bert, tmp_path / "out", sparsity=0.9, candidate=1, randomness="target_ir", target_ir=50.0)
    assert len(record["notes"]) == 12
    assert "an ir of 50 is out of reach" in record["notes"][0]
    told = re.findall("note: (.*)", (tmp_path / "out" / "README.md").read_text())
    sentences = [note.partition(": ")[2] for note in record["notes"]]
    assert len(told) < 12
    for note, (sentence, tensors) in zip(told, Counter(sentences).items(), strict=True):
        assert re.fullmatch(rf"bert\.[\w.]+( and {tensors - 1} more)?: {re.escape(sentence)}", note)


@pytest.mark.parametrize("fields", [RANDOM, RANDOM | {"scope": "global"}])
def test_stopped_anywhere_it_goes_on_to_the_same_files(bert, tmp_path, fields):
    masked(bert, tmp_path / "whole", **fields)
    out = tmp_path / "out"
    stops = 0
    for stop_at in range(3, 200, 6):
        heard = 0

        def stop(done, of, doing, stop_at=stop_at):
            nonlocal heard
            heard += 1
            assert 0 <= done <= of
            assert doing
            if heard == stop_at:
                raise KeyboardInterrupt

        try:
            mask_checkpoint(bert, out, MaskSettings(**fields), tell=stop)
            break
        except KeyboardInterrupt:
            stops += 1
            assert not (out / "config.json").exists()  # it does not pass for a model
    assert stops > 2
    assert content(out) == content(tmp_path / "whole")
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    masked(bert, out, **fields)  # finished: nothing is done again
    assert stamps == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    next(out.glob("*.safetensors")).unlink()
    for lost in ("model.safetensors.index.json", "README.md"):
        (out / lost).unlink()
        masked(bert, out, **fields)
        assert content(out) == content(tmp_path / "whole")


@pytest.mark.crash
def test_killed_in_the_middle_it_goes_on_to_the_same_files(tmp_path):
    """A process of its own, killed as soon as a first shard is there."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    generator = torch.Generator().manual_seed(0)
    index = {}
    for layer in range(6):
        tensors = {f"layers.{layer}.m{place}.weight": torch.randn(512, 512, generator=generator) for place in range(4)}
        save_file(tensors, source / f"part-{layer}.safetensors")
        index |= dict.fromkeys(tensors, f"part-{layer}.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    fields = {"sparsity": 0.5, "scope": "global", "candidate": 1}
    code = f"""
import time
from randprune_lab.sharded import mask_checkpoint
from randprune_lab.stored_masks import MaskSettings
mask_checkpoint({str(source)!r}, {str(out)!r}, MaskSettings(**{fields!r}), tell=lambda *_: time.sleep(0.05))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 50
    while not (out / "part-1.safetensors").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another process is writing there"):
        masked(source, out, **fields)
    process.kill()
    process.wait()
    assert not (out / "part-5.safetensors").exists()
    masked(source, out, **fields)
    masked(source, tmp_path / "whole", **fields)
    assert content(out) == content(tmp_path / "whole")


def test_begun_otherwise_is_refused(bert, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(bert, source)
    masked(source, out, sparsity=0.5)
    with pytest.raises(ValueError, match=r"begun with other settings .*0\.5.*now.*0\.6"):
        masked(source, out, sparsity=0.6)
    shard = sorted(source.glob("*.safetensors"))[-1]
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ValueError, match="begun with another checkpoint, or it has changed since"):
        masked(source, out, sparsity=0.5)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: [record],
        lambda record: record | {"source": "here"},
        lambda record: {name: value for name, value in record.items() if name != "notes"},
        lambda record: record | {"shards": {"model.safetensors": 3}},
        lambda record: record | {"shards": {"model.safetensors": {"layers.0.m0.weight": {"size": 16}}}},
        lambda record: record | {"totals": {"kept": 32}},
    ],
)
def test_a_folder_with_another_kind_of_record_is_left_as_it_is(small_file, tmp_path, damage):
    out = tmp_path / "out"
    record = masked(small_file, out, sparsity=0.5)
    (out / "mask.json").write_text(json.dumps(damage(record)))
    (out / ".mine.part").write_text("somebody's")
    (out / ".mine.tmp").write_text("somebody's")
    before = content(out)
    with pytest.raises(ValueError, match="is no record of randprune mask"):
        masked(small_file, out, sparsity=0.5)
    assert content(out) == before


def test_what_a_killed_process_had_begun_goes_and_what_is_not_ours_stays(small_file, tmp_path):
    out = tmp_path / "out"
    masked(small_file, out, sparsity=0.5)
    before = content(out)
    for name in (".model.safetensors.part", ".mask.json.17-18.tmp", ".README.md.17-18.tmp"):
        (out / name).touch()
    (out / ".mine.part").touch()
    masked(small_file, out, sparsity=0.5)
    assert content(out) == before | {".mine.part": b""}


def test_a_tensor_that_loses_all_is_no_fault_of_the_record(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            f"{name}.weight": scale * torch.randn(8, 8, generator=generator)
            for name, scale in {"a": 1, "b": 1e-3}.items()
        },
        source / "model.safetensors",
    )
    record = masked(source, out, sparsity=0.9, scope="global")
    assert record["shards"]["model.safetensors"]["b.weight"]["kept"] == 0
    assert masked(source, out, sparsity=0.9, scope="global") == record


def test_a_record_that_lacks_facts_is_completed(small_file, tmp_path):
    out = tmp_path / "out"
    record = masked(small_file, out, sparsity=0.5)
    for lacking in ({"shards": {"model.safetensors": {}}}, {"totals": None}):
        (out / "mask.json").write_text(json.dumps(record | lacking))
        assert masked(small_file, out, sparsity=0.5) == record


def test_what_failed_before_anything_was_written_may_be_tried_otherwise(tmp_path):
    tensors = {f"layers.0.m{place}.weight": torch.randn(4, 4) for place in range(4)}
    tensors["layers.0.m3.weight"][0, 0] = math.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="NaN"):
        masked(tmp_path / "model.safetensors", tmp_path / "out", sparsity=0.5)
    record = masked(tmp_path / "model.safetensors", tmp_path / "out", sparsity=0.5, exclude=("m3",))
    assert record["totals"]["tensors"] == 3


def test_a_checkpoint_is_the_same_by_any_path(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(bert)
    record = masked(Path("."), tmp_path / "out", sparsity=0.5)
    assert "# bert, masked" in (tmp_path / "out" / "README.md").read_text()
    assert masked(bert, tmp_path / "out", sparsity=0.5) == record
    shutil.copytree(bert, tmp_path / "copy")
    assert masked(tmp_path / "copy", tmp_path / "out", sparsity=0.5) == record


def test_versions_count_for_random_masks_only(small_file, tmp_path, monkeypatch):
    for candidate in (0, 1):
        record = masked(small_file, tmp_path / f"{candidate}", sparsity=0.5, candidate=candidate)
        assert {"torch", "numpy", "scipy"} < record["made_with"].keys()
    monkeypatch.setattr(sharded, "PARTS", ("torch",))
    masked(small_file, tmp_path / "0", sparsity=0.5)
    with pytest.raises(ValueError, match="begun with other versions or another device"):
        masked(small_file, tmp_path / "1", sparsity=0.5, candidate=1)


# Bad input


def test_a_folder_that_cannot_be_written_to_is_refused(bert, tmp_path):
    with pytest.raises(ValueError, match="lies inside"):
        masked(bert, bert, sparsity=0.5)
    with pytest.raises(ValueError, match="lies inside"):
        masked(bert, bert / "out", sparsity=0.5)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other things"):
        masked(bert, tmp_path / "taken", sparsity=0.5)
    with pytest.raises(ValueError, match="no folder that can be used"):
        masked(bert, tmp_path / "taken" / "thesis.tex", sparsity=0.5)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        masked(bert, tmp_path / "link", sparsity=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "taken"]


def test_two_at_a_time_are_refused(bert, tmp_path):
    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / sharded.LOCK), pytest.raises(ValueError, match="another process"):
        masked(bert, tmp_path / "out", sparsity=0.5)


def test_a_lock_that_cannot_be_removed_is_released(bert, tmp_path, monkeypatch):
    """As on Windows, where a file that is open stays."""
    remove = Path.unlink

    def refuse(path, **options):
        if path.name == sharded.LOCK:
            raise PermissionError(errno.EACCES, "in use")
        remove(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    masked(bert, tmp_path / "out", sparsity=0.5)
    masked(bert, tmp_path / "out", sparsity=0.5)


def test_a_small_disk_is_told_before_work(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "free_disk", lambda _: 1000)
    with pytest.raises(ValueError, match=r"bytes are to be written, 1,000 are free"):
        masked(bert, tmp_path / "out", sparsity=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "Free the disk and run it again: it goes on"), (errno.EIO, "out: cannot be written .*Mend that")],
)
def test_a_folder_that_fails_says_how_to_go_on(bert, tmp_path, monkeypatch, number, said):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sharded, "rewrite_shard", fail)
    with pytest.raises(ValueError, match=said):
        masked(bert, tmp_path / "out", sparsity=0.5)


@pytest.mark.parametrize("lost", ["model-00002", "tokenizer.json"])
def test_a_source_that_cannot_be_read_any_more_is_named(bert, tmp_path, lost):
    """Tensors that are copied, and files beside them, too: the target's disk is not to blame."""
    source = tmp_path / "source"
    shutil.copytree(bert, source)
    (file,) = source.glob(f"{lost}*")

    def lose(*_):
        file.unlink(missing_ok=True)

    with pytest.raises(ValueError, match=rf"source/{lost}.*: cannot be read .*Copy or download it again"):
        mask_checkpoint(source, tmp_path / "out", MaskSettings(sparsity=0.5, include=("layer.0",)), tell=lose)


def damaged(bert: Path, folder: Path, name: str) -> Path:
    shutil.copytree(bert, folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    index = folder / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    match name:
        case "truncated":
            shard.write_bytes(shard.read_bytes()[:-10])
        case "missing shard":
            shard.unlink()
        case "missing shard, no index":
            shard.unlink()
            index.unlink()
        case "missing tensor":
            known["weight_map"]["bert.encoder.layer.7.weight"] = shard.name
            index.write_text(json.dumps(known))
        case "twice":
            index.unlink()
            shutil.copy(shard, folder / "again.safetensors")
        case "pickle":
            for file in [*folder.glob("*.safetensors"), index]:
                file.unlink()
        case "nan":
            tensors = read_tensors(shard)
            at = next(name for name in tensors if "encoder" in name and tensors[name].ndim == 2)
            tensors[at][0, 0] = math.nan
            save_file(tensors, shard, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated", "not a readable safetensors file"),
        ("missing shard", "there is no such file beside it"),
        ("missing shard, no index", r"\d+ of the \d+ files model-...-of-\d+ are there. Download"),
        ("missing tensor", "bert.encoder.layer.7.weight should lie in"),
        ("twice", "Leave one set of weights there"),
        ("pickle", "a pickle, and no safetensors.*Convert it"),
        ("nan", r"^bert\.encoder\.layer\.\d.*weight: 1 of .* weights are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_damaged_checkpoint_is_refused(bert, tmp_path, name, said, scope):
    folder = damaged(bert, tmp_path / "source", name)
    with pytest.raises(ValueError, match=said):
        masked(folder, tmp_path / "out", sparsity=0.5, scope=scope)


def test_too_few_weights_to_draw_from_are_told_by_name(tmp_path):
    tensors = {f"layers.0.m{place}.weight": torch.eye(8) for place in range(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    masked(tmp_path / "model.safetensors", tmp_path / "plain", sparsity=0.5)  # zeros fill up
    for scope, name in (("layer", "layers.0.m0.weight: "), ("global", "32 weights exist, 128 are to be kept")):
        with pytest.raises(ValueError, match=name):
            masked(tmp_path / "model.safetensors", tmp_path / scope, sparsity=0.5, candidate=1, scope=scope)


def test_settings_that_will_not_do(bert, tmp_path):
    for fields, said in (
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": 0.5, "scope": "globe"}, "Did you mean 'global'"),
        ({"sparsity": 0.5, "include": ("(",)}, "no regular expression"),
        ({"sparsity": 0.5, "include": ("lstm",)}, "matches no prunable tensor"),
        ({"sparsity": 0.5, "exclude": ("weight",)}, "nothing to prune"),
        ({"sparsity": 0.5, "samples": 0}, "samples"),
    ):
        with pytest.raises(ValueError, match=said):
            masked(bert, tmp_path / "out", **fields)
    with pytest.raises(ValueError, match="no such file or folder"):
        masked(tmp_path / "nowhere" / "at-all", tmp_path / "out", sparsity=0.5)
    with pytest.raises(ValueError, match="device"):
        mask_checkpoint(bert, tmp_path / "out", MaskSettings(sparsity=0.5), device="tpu")
    save_file({"norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="nothing to prune"):
        masked(tmp_path / "model.safetensors", tmp_path / "out", sparsity=0.5)
    assert not (tmp_path / "out").exists()


def test_a_hub_id_is_fetched_without_pickles(bert, tmp_path, monkeypatch):
    asked = []

    def download(model_id, **options):
        asked.append((model_id, options))
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    record = masked("someone/bert", tmp_path / "out", sparsity=0.5)
    assert (tmp_path / "out" / "config.json").is_file()
    assert record["source"]["name"] == "someone/bert"
    assert 'base_model: "someone/bert"' in (tmp_path / "out" / "README.md").read_text()
    assert all(model_id == "someone/bert" for model_id, _ in asked)
    (weights, rest) = asked
    assert "revision" not in weights[1]
    assert rest[1]["revision"] == bert.name  # the commit: asked for again, the id might give a newer one
    assert {"*.bin", "*.onnx", "checkpoint-*/*"} <= set(rest[1]["ignore_patterns"])


# The command


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing but getrusage tells")
def test_the_peak_of_memory_is_not_that_of_whoever_started_the_command():
    """It was: a process of half a gigabyte, such as this one, put its own peak under every mask."""
    code = "from randprune_lab.cli_scale import peak_memory; print(peak_memory())"
    peak = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert 1e6 < peak < peak_memory() / 2


def test_the_help_names_the_largest_vector(command):
    _, out, _ = command("mask", "--help")
    assert "260 billion" in " ".join(re.sub("[│|]", " ", out).split())


def test_the_command_masks_and_tells(command, bert, tmp_path):
    code, out, err = command("mask", bert, "--sparsity", 0.5, "--out", tmp_path / "plain")
    assert (code, err) == (0, "")
    assert "tau" in out
    assert "swapped" not in out
    assert "sparsity 0.5000, of all" in out
    code, out, err = command(
        "mask", bert, "--sparsity", 0.5, "--out", tmp_path / "random", "--sr", 1e-3, "--scope", "global", "--json"
    )
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["settings"]["randomness"] == "decrease"
    assert told["settings"]["candidate"] == 1
    assert told["totals"]["ir"] > 0
    assert told["peak_memory"] > 1e7
    code, out, _ = command("mask", bert, "--sparsity", 0.5, "--out", tmp_path / "ir", "--target-ir", 0.02)
    assert code == 0
    assert "ir 0.0" in out


def test_an_infinite_ir_is_told_alike_when_nothing_is_left_to_do(command, tmp_path):
    """One weight of sixteen is pruned, another one than by the plain mask: no weight is pruned by both."""
    save_file({"w.weight": torch.arange(1.0, 17).view(4, 4)}, tmp_path / "model.safetensors")
    mask = ("mask", tmp_path / "model.safetensors", "--out", tmp_path / "out", "--sparsity", 1 / 16, "--power", 0)
    first, again = (command(*mask, "--samples", 1) for _ in range(2))
    assert (first[0], again[0]) == (0, 0)
    assert first[1].partition("Left alone")[0] == again[1].partition("Left alone")[0]
    assert "written in" in first[1]
    assert "was there already, nothing was written" in again[1]
    assert "; ir -, swapped 6.67%." in first[1]
    assert "randomness ir is infinite" in (tmp_path / "out" / "README.md").read_text()


def test_many_draws_are_told_as_a_number_of_draws(command, tmp_path):
    save_file({"w.weight": torch.arange(1.0, 17).view(4, 4)}, tmp_path / "model.safetensors")
    mask = ("mask", tmp_path / "model.safetensors", "--out", tmp_path / "out", "--sparsity", 0.5)
    code, out, _ = command(*mask, "--samples", 22500)
    assert code == 0
    assert "22,500" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--power", 3], "--power: only of random masks"),
        (["--samples", 3, "--sr", 1e-3], "pass one kind of them"),
        (["--target-ir", 0.1, "--power", 3], "leave --power out"),
        (["--schedule", "rise"], "Did you mean"),
        (["--sparsity", 1.5], "sparsity"),
    ],
)
def test_the_command_refuses(command, bert, tmp_path, options, said):
    code, _, err = command("mask", bert, "--sparsity", 0.5, "--out", tmp_path / "out", *options)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()
