"""MNIST and CIFAR-10: their layout from the Hub, pixels, splits, what is kept on disk, and rows that cannot be used."""

import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from randprune_lab import engine, vision
from randprune_lab.config import HUB, RunConfig
from randprune_lab.events import RunFinished, StageFinished
from randprune_lab.splits import Images, Split, Task, held_out_rows
from randprune_lab.tasks import TASKS, as_images, digits, is_text, load_task
from randprune_lab.tiny import tiny_vit

OBJECTS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES = {"mnist": [str(number) for number in range(10)], "cifar10": OBJECTS}
COLUMN = {"mnist": "image", "cifar10": "img"}
CONFIGURATION = {"mnist": "mnist", "cifar10": "plain_text"}
SHAPE = {"mnist": (28, 28), "cifar10": (32, 32, 3)}
# The usual constants of the whole training sets.
MEAN = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}
DEVIATION = {"mnist": [0.3081], "cifar10": [0.2470, 0.2435, 0.2616]}
ROWS = {"train": 36, "test": 20}
QUICK = {
    "stages": (0.8,),
    "dense_epochs": 1,
    "max_epochs": 1,
    "candidates": 2,
    "batch_size": 10,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Nothing of a test outlives it."""
    monkeypatch.setenv("RANDPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def raw(task: str, split: str) -> np.ndarray:
    """Random pixels: uint8 (rows, height, width) or (rows, height, width, 3)."""
    return np.random.default_rng(len(split)).integers(0, 256, (ROWS[split], *SHAPE[task]), dtype=np.uint8)


def png(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def rows_of(task: str, split: str) -> dict[str, list]:
    return {
        COLUMN[task]: [{"bytes": png(picture), "path": None} for picture in raw(task, split)],
        "label": [row % 10 for row in range(ROWS[split])],
    }


def features(task: str, **changes) -> datasets.Features:
    return datasets.Features(
        {COLUMN[task]: datasets.Image(), "label": datasets.ClassLabel(names=NAMES[task])} | changes
    )


def hub(folder: Path, task: str, parts: dict[str, datasets.Dataset], name: str | None = "as there") -> str:
    """A folder laid out as the Hub's; ``name`` of the configuration, None: without the README that names it."""
    name = CONFIGURATION[task] if name == "as there" else name
    lines = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    place = folder / (name or "data")
    place.mkdir(parents=True)
    for split, part in parts.items():
        pq.write_table(part.data.table, place / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: {place.name}/{split}-00000-of-00001.parquet"]
    if name:
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


def whole(task: str, **kinds) -> dict[str, datasets.Dataset]:
    return {split: datasets.Dataset.from_dict(rows_of(task, split), features(task, **kinds)) for split in ROWS}


def changed(task: str, split: str, column: str, row: int, value: object, **kinds) -> dict[str, datasets.Dataset]:
    """A data set with one cell exchanged."""
    rows = rows_of(task, split)
    rows[column][row] = value
    return whole(task, **kinds) | {split: datasets.Dataset.from_dict(rows, features(task, **kinds))}


def config(task: str, dataset: str, **settings_) -> RunConfig:
    return RunConfig(**(QUICK | {"task": task, "model": "lenet-300-100", "dataset": dataset} | settings_))


def standardized(task: str, picture: np.ndarray) -> np.ndarray:
    """Pixel by pixel: (channels, height, width)."""
    values = picture.reshape(*picture.shape[:2], -1)
    made = np.empty((values.shape[2], *values.shape[:2]))
    for channel in range(values.shape[2]):
        scaled = values[:, :, channel] / 255
        made[channel] = (scaled - MEAN[task][channel]) / DEVIATION[task][channel]
    return made


def same(one: Task, other: Task) -> bool:
    return one.digest() == other.digest() and one.labels == other.labels


TWO = pytest.mark.parametrize("task", ["mnist", "cifar10"])


def test_names():
    assert TASKS[:3] == ("digits", "mnist", "cifar10")
    assert not any(map(is_text, TASKS[:3]))
    assert all(map(is_text, TASKS[3:]))
    assert set(vision.SOURCES) == set(HUB)


@TWO
def test_pixels_labels_and_splits(task, tmp_path):
    found = load_task(config(task, hub(tmp_path / "data", task, whole(task))))
    assert found.name == task
    assert found.labels == tuple(NAMES[task])
    learn, hold = held_out_rows(36, 1 / 12 if task == "mnist" else 0.1)
    assert (len(hold), len(learn)) == ({"mnist": 3, "cifar10": 4}[task], len(found.train))
    for split, where, rows in (
        (found.train, "train", learn),
        (found.selection, "train", hold),
        (found.test, "test", torch.arange(20)),
    ):
        assert split.inputs.dtype == torch.float32
        assert split.labels.tolist() == [row % 10 for row in rows.tolist()]
        expected = np.stack([standardized(task, raw(task, where)[row]) for row in rows.tolist()])
        np.testing.assert_allclose(split.inputs.numpy(), expected, rtol=0, atol=1e-5)
    assert found.notes == (f"a part of {task}: 36 of {'60,000' if task == 'mnist' else '50,000'} training and 20 of "
                           "10,000 test pictures.",)  # fmt: skip


@TWO
def test_a_folder_may_name_its_configuration_as_it_likes(task, tmp_path):
    parts = whole(task)
    found = [
        load_task(config(task, hub(tmp_path / str(name), task, parts, name))) for name in ("as there", "own", None)
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_the_hub_is_asked_for_its_configuration(monkeypatch):
    asked = []
    monkeypatch.setattr(vision, "load_splits", lambda *given: asked.append(given) or {})
    for task in HUB:
        with pytest.raises(ValueError, match="has no split 'train'"):
            load_task(RunConfig(task=task))
    assert asked == [("ylecun/mnist", "mnist"), ("uoft-cs/cifar10", "plain_text")]


def test_without_a_network(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'ylecun/mnist'.*cannot be loaded .*Without a network, pass a local folder"):
        load_task(RunConfig(task="mnist"))


@TWO
def test_labels_without_names(task, tmp_path):
    named, numbers = (
        load_task(config(task, hub(tmp_path / kind, task, whole(task, **kinds))))
        for kind, kinds in (("named", {}), ("numbers", {"label": datasets.Value("int64")}))
    )
    assert numbers.labels == tuple("0123456789")
    assert numbers.digest() == named.digest()
    assert numbers.classes == 10


def test_jpeg_copies_are_told(tmp_path):
    jpeg = {"bytes": png(raw("cifar10", "train")[0], "JPEG"), "path": None}
    found = load_task(config("cifar10", hub(tmp_path, "cifar10", changed("cifar10", "train", "img", 9, jpeg))))
    assert found.notes[0] == "train: JPEG copies of the pictures, which have lost detail."


# What is kept on disk.


class Decoded:
    """Counts the pictures that are decoded."""

    def __init__(self, monkeypatch):
        self.number, opened = 0, Image.open
        monkeypatch.setattr(Image, "open", lambda file: [setattr(self, "number", self.number + 1), opened(file)][1])


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "pictures").iterdir())


@TWO
def test_decoded_once(task, tmp_path, monkeypatch):
    decoded, parts = Decoded(monkeypatch), whole(task)
    first = load_task(config(task, hub(tmp_path / "one", task, parts)))
    assert decoded.number == 36 + 20
    assert len(kept(tmp_path)) == 2
    again = load_task(config(task, hub(tmp_path / "two", task, parts, None)))  # another folder, the same pictures
    assert decoded.number == 36 + 20
    assert same(first, again)


def test_another_picture_or_order_is_decoded_anew(tmp_path):
    first = load_task(config("mnist", hub(tmp_path / "one", "mnist", whole("mnist"))))
    other = {"bytes": png(raw("mnist", "train")[7] ^ 1), "path": None}
    rows = rows_of("mnist", "train")
    rows["image"][0], rows["image"][1] = rows["image"][1], rows["image"][0]
    swapped = whole("mnist") | {"train": datasets.Dataset.from_dict(rows, features("mnist"))}
    for number, parts in enumerate([changed("mnist", "train", "image", 7, other), swapped]):
        found = load_task(config("mnist", hub(tmp_path / f"other{number}", "mnist", parts)))
        assert found.digest() != first.digest()
        assert len(kept(tmp_path)) == 3 + number


def test_labels_are_not_taken_from_the_cache(tmp_path):
    load_task(config("mnist", hub(tmp_path / "one", "mnist", whole("mnist"))))
    found = load_task(config("mnist", hub(tmp_path / "two", "mnist", changed("mnist", "test", "label", 4, 9))))
    assert found.test.labels[4] == 9


@pytest.mark.parametrize("damage", [b"", b"no safetensors at all", None])
def test_a_damaged_file_is_made_again(tmp_path, monkeypatch, damage):
    settings_ = config("mnist", hub(tmp_path / "one", "mnist", whole("mnist")))
    first = load_task(settings_)
    for file in kept(tmp_path):
        file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    decoded = Decoded(monkeypatch)
    assert same(load_task(settings_), first)
    assert decoded.number == 56
    assert same(load_task(settings_), first)
    assert decoded.number == 56


def test_a_disk_that_takes_nothing_costs_time_only(tmp_path, monkeypatch):
    dataset = hub(tmp_path / "one", "mnist", whole("mnist"))
    first = load_task(config("mnist", dataset))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RANDPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert same(load_task(config("mnist", dataset)), first)


def test_many_at_once(tmp_path):
    settings_ = config("mnist", hub(tmp_path / "one", "mnist", whole("mnist")))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load_task, [settings_] * 4))
    assert len({task.digest() for task in found}) == 1
    assert {file.suffix for file in kept(tmp_path)} == {".safetensors"}  # and no half of one


# What cannot be used.


def refused(task: str, dataset: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_task(config(task, dataset))


def test_no_such_folder(tmp_path):
    refused("mnist", str(tmp_path / "nowhere"), r"dataset = '.*nowhere'.*cannot be loaded .*pass a local folder")
    (tmp_path / "empty").mkdir()
    refused("mnist", str(tmp_path / "empty"), r"dataset = '.*empty'.*cannot be loaded")


@TWO
def test_a_missing_split(task, tmp_path):
    for split in ROWS:
        parts = {other: part for other, part in whole(task).items() if other != split}
        dataset = hub(tmp_path / split, task, parts)
        refused(task, dataset, rf"has no split '{split}', only {next(iter(parts))}\. Add it")


@TWO
def test_a_missing_column(task, tmp_path):
    for column in (COLUMN[task], "label"):
        parts = {split: part.rename_column(column, "other") for split, part in whole(task).items()}
        dataset = hub(tmp_path / column, task, parts)
        refused(task, dataset, rf"split 'train' has no column '{column}', only .*other.*Rename its columns")


def test_the_columns_of_the_other_task(tmp_path):
    refused("cifar10", hub(tmp_path, "mnist", whole("mnist")), "no column 'img', only image, label")


def test_no_pictures(tmp_path):
    parts = {
        split: datasets.Dataset.from_dict({"image": ["a.png"] * number, "label": [0] * number})
        for split, number in ROWS.items()
    }
    refused("mnist", hub(tmp_path, "mnist", parts), r"column 'image' of split 'train' holds .*string.*datasets.Image")


def test_too_few_rows(tmp_path):
    for split in ROWS:
        parts = whole("mnist")
        parts[split] = parts[split].select(range(9))
        refused("mnist", hub(tmp_path / split, "mnist", parts), f"split '{split}' has 9 rows; a run needs 10 or more")


@pytest.mark.parametrize("value", [10, -1, None, 1.5, "7"])
def test_labels_outside(tmp_path, value):
    kind = {float: "float64", str: "string"}.get(type(value), "int64")
    rows = {split: rows_of("mnist", split) for split in ROWS}
    for split in ROWS:
        rows[split]["label"] = [type(value)(label) if kind != "int64" else label for label in rows[split]["label"]]
    if kind == "int64":
        rows["test"]["label"][13] = value
    parts = {
        split: datasets.Dataset.from_dict(part, features("mnist", label=datasets.Value(kind)))
        for split, part in rows.items()
    }
    where = (
        r"split 'test', row 13: the label is (10|-1|None)" if kind == "int64" else r"split 'train', row 0: the label"
    )
    refused("mnist", hub(tmp_path, "mnist", parts), where + r".*; must be a whole number from 0 to 9\. Mend")


SIZES = {"mnist": "28 x 28, grey", "cifar10": "32 x 32, colour"}


@pytest.mark.parametrize(
    ("task", "picture", "found"),
    [
        ("mnist", np.zeros((28, 27), np.uint8), "27 x 28 pixels, grey"),
        ("mnist", np.zeros((32, 32), np.uint8), "32 x 32 pixels, grey"),
        ("mnist", np.zeros((28, 28, 3), np.uint8), "28 x 28 pixels, colour"),
        ("mnist", np.zeros((28, 28), np.uint16), "28 x 28 pixels, I;16"),
        ("cifar10", np.zeros((32, 32), np.uint8), "32 x 32 pixels, grey"),
        ("cifar10", np.zeros((33, 32, 3), np.uint8), "32 x 33 pixels, colour"),
        ("cifar10", np.zeros((32, 32, 4), np.uint8), "32 x 32 pixels, RGBA"),
    ],
)
@pytest.mark.parametrize("split", ROWS)
def test_other_pictures(tmp_path, task, picture, found, split):
    parts = changed(task, split, COLUMN[task], 11, {"bytes": png(picture), "path": None})
    match = rf"split '{split}', row 11: the picture has {found}; must have {SIZES[task]}\. Convert it"
    refused(task, hub(tmp_path, task, parts), match)


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        (None, "there is no picture"),
        ({"bytes": None, "path": "elsewhere.png"}, "there is no picture"),
        ({"bytes": b"", "path": None}, "is no picture that can be read"),
        ({"bytes": b"GIF89a and so on", "path": None}, "is no picture that can be read"),
        ({"bytes": png(raw("mnist", "test")[0])[:-300], "path": None}, "is no picture that can be read"),
    ],
)
def test_no_picture_in_a_row(tmp_path, cell, match):
    refused("mnist", hub(tmp_path, "mnist", changed("mnist", "train", "image", 5, cell)), f"row 5: {match}")


def test_what_was_refused_is_not_kept(tmp_path):
    dataset = hub(tmp_path / "data", "mnist", changed("mnist", "train", "image", 5, None))
    for _ in range(2):
        refused("mnist", dataset, "row 5")
    assert not (tmp_path / "cache" / "pictures").exists()


# Pictures for transformers.


def vit(size: int, channels: int) -> nn.Module:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(image_size=size, num_channels=channels, patch_size=size // 2, **shape))


def pictures(channels: int, side: int, rows: int = 12) -> Task:
    made = torch.randn((rows, channels, side, side), generator=torch.Generator().manual_seed(side))
    return Task.of((made, torch.arange(rows) % 3), (made, torch.arange(rows) % 3))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1, 3]), st.sampled_from([1, 3]), st.integers(2, 40), st.integers(2, 40))
def test_images_of_any_size_and_channels(have, want, side, size):
    batch = Images(pictures(have, side).test.inputs, size, want)[torch.arange(5)]["pixel_values"]
    assert batch.shape == (5, want, size, size)
    # A picture of one value everywhere stays so, whatever its size and channels.
    even = Images(torch.full((2, have, side, side), 0.5), size, want)[slice(None)]["pixel_values"]
    torch.testing.assert_close(even, torch.full((2, want, size, size), 0.5))


@pytest.mark.parametrize(("have", "want"), [(1, 1), (1, 3), (3, 3), (3, 1)])
def test_channels(have, want):
    task = pictures(have, 8)
    found = as_images(task, vit(8, want)).test
    batch, labels = found.batch(torch.tensor([3, 1]))
    expected = [task.test.inputs[row] for row in (3, 1)]
    if have > want:
        expected = [(picture[0] + picture[1] + picture[2])[None] / 3 for picture in expected]
    for place in range(want):
        torch.testing.assert_close(batch["pixel_values"][:, place], torch.stack([p[place % len(p)] for p in expected]))
    assert labels.tolist() == [0, 1]


def test_smaller_pictures_are_averaged():
    """A chessboard of 1s and 0s, shrunk four times, is grey all over: sampling single pixels would make stripes."""
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    batch = Images(board.float()[None, None], 8, 1)[torch.tensor([0])]["pixel_values"]
    assert (batch - 0.5).abs().max() < 0.05


def test_digits_as_images_are_what_they_were():
    task = digits()
    found = as_images(task, tiny_vit())
    assert torch.equal(found.test.inputs.pixels, task.test.inputs.view(-1, 1, 8, 8))
    assert torch.equal(found.test.inputs[slice(None)]["pixel_values"], task.test.inputs.view(-1, 1, 8, 8))


def test_as_images_leaves_the_rest_alone():
    task = pictures(3, 8)
    assert as_images(task, nn.Linear(3, 3)) is task
    odd = Task.of((torch.zeros(9, 3, 8), torch.arange(9) % 3), (torch.zeros(9, 3, 8), torch.arange(9) % 3))
    assert as_images(odd, tiny_vit()) is odd


def test_a_network_without_a_size_takes_the_pictures_own():
    shape = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
    network = ResNetForImageClassification(ResNetConfig(**shape, num_labels=3)).eval()
    batch, _ = as_images(pictures(3, 32), network).train.batch(torch.arange(2))
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert network(**batch).logits.shape == (2, 3)


# Whole runs.


@pytest.mark.parametrize(
    ("task", "model", "method"),
    [
        ("mnist", "lenet-300-100", "randomized"),
        ("cifar10", "resnet20", "randomized"),
        ("cifar10", "vgg16", "imp"),
        ("mnist", "tiny-vit", "randomized"),
        ("cifar10", "tiny-vit", "randomized"),
    ],
)
def test_a_run(task, model, method, tmp_path):
    dataset = hub(tmp_path, task, whole(task))
    events = list(engine.prune(config(task, dataset, model=model, method=method, max_steps_per_epoch=1)))
    done = next(event for event in events if isinstance(event, StageFinished))
    assert done.sparsity == pytest.approx(0.8, abs=1e-3)
    assert any(isinstance(event, RunFinished) for event in events)


@pytest.mark.parametrize(
    ("task", "model", "match"),
    [("mnist", "vgg16", r"shape \(1, 28, 28\)"), ("cifar10", "lenet-300-100", r"shape \(3, 32, 32\)")],
)
def test_a_network_for_other_pictures(task, model, match, tmp_path):
    dataset = hub(tmp_path, task, whole(task))
    with pytest.raises(ValueError, match=f"the model cannot take examples of {match}"):
        engine.prune(config(task, dataset, model=model))


# The real ones.


def spread(split: Split) -> tuple[Sequence[float], Sequence[float]]:
    return split.inputs.mean((0, 2, 3)).tolist(), split.inputs.std((0, 2, 3)).tolist()


def test_mnist(test_data, monkeypatch):
    settings_ = RunConfig(task="mnist", model="lenet-300-100", dataset=str(test_data / "data" / "mnist"))
    found = load_task(settings_)
    assert {name: tuple(split.inputs.shape) for name, split in found.splits.items()} == {
        "train": (55_000, 1, 28, 28),
        "selection": (5_000, 1, 28, 28),
        "test": (10_000, 1, 28, 28),
    }
    assert found.notes == ()
    mean, deviation = spread(found.train)
    assert mean == pytest.approx([0], abs=0.01)
    assert deviation == pytest.approx([1], abs=0.01)
    counts = torch.bincount(torch.cat([found.train.labels, found.selection.labels])).tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # of the original files
    assert found.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    decoded = Decoded(monkeypatch)
    assert same(load_task(settings_), found)
    assert decoded.number == 0


def test_cifar10(test_data):
    settings_ = RunConfig(task="cifar10", model="resnet20", dataset=str(test_data / "data" / "cifar10_jpeg"))
    found = load_task(settings_)
    assert {name: tuple(split.inputs.shape) for name, split in found.splits.items()} == {
        "train": (18_000, 3, 32, 32),
        "selection": (2_000, 3, 32, 32),
        "test": (10_000, 3, 32, 32),
    }
    assert found.labels == tuple(OBJECTS)
    assert found.notes == (
        "train and test: JPEG copies of the pictures, which have lost detail.",
        "a part of cifar10: 20,000 of 50,000 training and 10,000 of 10,000 test pictures.",
    )
    mean, deviation = spread(found.train)
    assert mean == pytest.approx([0, 0, 0], abs=0.02)  # of 18,000 pictures of other detail
    assert deviation == pytest.approx([1, 1, 1], abs=0.02)


def test_sources_are_the_usual_ones():
    for task, source in vision.SOURCES.items():
        told = dataclasses.asdict(source)
        assert (told["name"], told["column"]) == (CONFIGURATION[task], COLUMN[task])
        assert (list(told["mean"]), list(told["deviation"])) == (MEAN[task], DEVIATION[task])
