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
from randprune_lab.vision import SOURCES, load_pictures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PICTURES = ("digits", *SOURCES)
TASKS = (*PICTURES, "sentences", "text", *GLUE_TASKS)


def is_text(task: str) -> bool:
    """A model of this task needs a tokenizer."""
    return task in TASKS and task not in PICTURES


def load_task(config: RunConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Task:
    """The data set that ``config`` names; texts need a ``tokenizer``.

    Raises:
        ValueError: there is no such task (the nearest is named), or its data cannot be used.
    """
    check_option("task", config.task, TASKS)
    if config.task == "digits":
        return digits()
    if config.task in SOURCES:
        return load_pictures(config)
    if tokenizer is None:
        raise ValueError(
            f"task = {config.task!r}: needs a model with a tokenizer. Pass tiny-bert, tiny-gpt2, a Hub id or a folder."
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
    """A task of pictures, as an image model of the transformers library takes them; any other as it is.

    Pictures are tensors of shape (rows, channels, height, width), or (rows, pixels) of grey square ones.
    """
    settings: Any = getattr(model, "config", None)
    pixels = task.train.inputs
    if getattr(model, "main_input_name", "") != "pixel_values" or not isinstance(pixels, Tensor):
        return task
    if pixels.ndim not in (2, 4):
        return task

    def picture(split: Split) -> Split:
        found: Any = split.inputs
        if found.ndim == 2:
            side = round(found.shape[1] ** 0.5)
            found = found.view(-1, 1, side, side)
        size = getattr(settings, "image_size", found.shape[-1])  # a convolutional network takes any
        return Split(Images(found, size, settings.num_channels), split.labels)

    return task.changed(picture)
