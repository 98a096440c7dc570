"""Data sets by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from randprune_lab.checks import check_option
from randprune_lab.config import RunConfig
from randprune_lab.splits import Images, Split, Task
from randprune_lab.tables import GLUE_TASKS
from randprune_lab.texts import load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASKS = ("digits", "sentences", "text", *GLUE_TASKS)


def is_text(task: str) -> bool:
    """A model of this task needs a tokenizer."""
    return task in TASKS and task != "digits"


def load_task(config: RunConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Task:
    """The data set that ``config`` names; texts need a ``tokenizer``.

    Raises:
        ValueError: there is no such task (the nearest is named), or its data cannot be used.
    """
    check_option("task", config.task, TASKS)
    if config.task == "digits":
        return digits()
    if tokenizer is None:
        raise ValueError(
            f"task = {config.task!r}: needs a model with a tokenizer. Pass tiny-bert, a Hub id or a folder."
        )
    return load_texts(config, tokenizer)


def digits() -> Task:
    """scikit-learn's digits: 1,797 real 8 x 8 grey images of handwritten numbers, pixels scaled to [0, 1].

    Stratified and always the same: 1,077 train, 360 selection, 360 test.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    train, selection = train_test_split(rest, test_size=360, stratify=labels[rest], random_state=0)

    def split(rows: list[int]) -> Split:
        return Split(torch.from_numpy(images[rows] / 16).float(), torch.from_numpy(labels[rows]).long())

    return Task("digits", split(train), split(selection), split(test))


def as_images(task: Task, model: nn.Module) -> Task:
    """A task of flat square pictures, as an image model of the transformers library takes them."""
    settings: Any = getattr(model, "config", None)
    pixels = task.train.inputs
    if getattr(model, "main_input_name", "") != "pixel_values" or not isinstance(pixels, Tensor) or pixels.ndim != 2:
        return task
    side = round(pixels.shape[1] ** 0.5)

    def picture(split: Split) -> Split:
        flat: Any = split.inputs
        return Split(Images(flat.view(-1, 1, side, side), settings.image_size, settings.num_channels), split.labels)

    return task.changed(picture)
