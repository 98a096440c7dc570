"""Networks to prune: build one, find its prunable weights, or read a checkpoint tensor by tensor."""

from __future__ import annotations

import difflib
import functools
import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randprune_lab.checks import check_option
from randprune_lab.nets import NETS
from randprune_lab.pretrained import TINY, load_network

MODELS = ("mlp", *NETS, *TINY)
MLP_WIDTHS = (64, 300, 100, 10)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def is_transformer(name: str) -> bool:
    """``name`` is that of a network of the transformers library: a tiny one, a Hub id or a folder."""
    return name in TINY or (name not in MODELS and ":" not in name)


def build_model(name: str, seed: int, **head: Any) -> nn.Module:
    """A network, what is new in it initialized the same for the same seed. The global random state is left as it was.

    Args:
        name: "mlp"; one of ``nets.NETS``, ``pretrained.TINY``; a Hub id or a folder; "package.module:function" of a
            function that takes nothing and returns the network.
        seed: of the initialization.
        head: of transformers, the arguments of ``pretrained.load_network``; of ``nets.NETS``, ``outputs`` among them,
            the number of classes (10).

    Raises:
        ValueError: there is no such network or function.
    """
    if is_transformer(name):
        if "/" not in name and not Path(name).exists() and name not in TINY:
            close = difflib.get_close_matches(name, MODELS, n=1)
            if close:
                check_option("model", name, MODELS)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return load_network(name, **head)
    build = _import(name) if ":" in name else _mlp
    if name in NETS:
        build = functools.partial(NETS[name], head.get("outputs", 10))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = build()
        except Exception as error:  # somebody else's code
            raise ValueError(
                f"model = {name!r}: fails when called ({error!r}). Name a function that takes nothing."
            ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model = {name!r}: gave a {type(model).__name__}. The function must return a torch.nn.Module."
        )
    return model


def _mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(MLP_WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _import(name: str) -> Callable[[], nn.Module]:
    module, _, function = name.partition(":")
    sys.path.insert(0, "")  # a module in the working folder, as python -m would find it
    try:
        found: Callable[[], nn.Module] = getattr(importlib.import_module(module), function)
    except Exception as error:  # somebody else's code
        raise ValueError(f"model = {name!r}: cannot be imported ({error}). Pass package.module:function.") from error
    finally:
        sys.path.remove("")
    return found


def prunable_weights(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, Tensor]:
    """What is pruned, by name, detached; it shares memory with the model.

    The weight matrices of a transformer's blocks, or the weights of a plain network's linear and convolutional layers.

    With ``include`` only those whose name one of these regular expressions finds; none that one of ``exclude`` finds.

    Raises:
        ValueError: nothing is left to prune, or a pattern finds none of them.
    """
    weights = _of_blocks(model) or _of_layers(model)
    for pattern in (*include, *exclude):
        if not any(re.search(pattern, name) for name in weights):
            raise ValueError(
                f"pattern {pattern!r}: matches no prunable parameter. Choose among: {', '.join(weights) or 'none'}."
            )
    chosen = {
        name: weight
        for name, weight in weights.items()
        if (not include or any(re.search(pattern, name) for pattern in include))
        and not any(re.search(pattern, name) for pattern in exclude)
    }
    if not chosen:
        raise ValueError(
            f"the model ({type(model).__name__}) has nothing to prune: a linear or convolutional layer must be left. "
            f"include = {tuple(include)}, exclude = {tuple(exclude)}; found {', '.join(weights) or 'none'}."
        )
    return chosen


def _of_layers(model: nn.Module) -> dict[str, Tensor]:
    own = dict(model.named_parameters())  # a weight that two layers share stands there once
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.weight".removeprefix("."): module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, kinds) and f"{name}.weight".removeprefix(".") in own
    }


def _of_blocks(model: nn.Module) -> dict[str, Tensor]:
    """The weight matrices of a transformer's blocks; empty if it has no stack of blocks.

    A stack of blocks is an outermost list of modules of one class, each with four weight matrices or more. What is
    outside (embeddings, pooler, heads) is left alone, and so are embeddings inside. By position and shape, whatever the
    architecture calls its layers.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    stacks: list[str] = []
    for place, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or place.startswith(tuple(f"{s}." for s in stacks)):
            continue
        blocks = list(module)
        if len({type(block) for block in blocks}) == 1 and all(len(_matrices(block)) >= 4 for block in blocks):
            stacks.append(place)
            found |= {own[id(weight)]: weight.detach() for block in blocks for weight in _matrices(block)}
    return {name: found[name] for name in own.values() if name in found}  # in the model's own order


def _matrices(block: nn.Module) -> list[nn.Parameter]:
    """The weights of two or more dimensions inside, those of embeddings left out."""
    return [
        parameter
        for module in block.modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("weight") and parameter.ndim >= 2
    ]


def weight_matrices(model: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every floating-point matrix (2 or more dimensions) of a checkpoint, one in memory at a time.

    ``model`` is a ``.safetensors`` file, a folder with such files, or a Hub id.

    Raises:
        ValueError: no safetensors are there, or only a pickle is.
    """
    from safetensors import SafetensorError, safe_open

    for file in weight_files(model):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118, not a dict
                    part = tensors.get_slice(name)
                    if len(part.get_shape()) >= 2 and part.get_dtype() in ("F64", "F32", "F16", "BF16"):
                        yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file}: not a readable safetensors file ({error}). Copy or download it again."
            ) from error


def weight_files(model: str | Path) -> list[Path]:
    """The safetensors files of a file, a folder or a Hub id (downloaded into the Hub's cache).

    Raises:
        ValueError: no safetensors are there, or only a pickle is.
    """
    path = Path(model)
    try:
        if not path.exists():
            path = _download(str(model))
    except OSError as error:
        raise ValueError(f"{model}: cannot be read ({error}). Pass a folder with .safetensors files.") from error
    if not path.is_dir():
        files, found = ([path] if path.suffix == ".safetensors" else []), [path]
    else:
        files, found = sorted(path.glob("*.safetensors")), sorted(path.iterdir())
        index = path / "model.safetensors.index.json"
        if index.is_file():
            files = _shards(index)
    if files:
        return files
    pickles = [file.name for file in found if file.suffix in PICKLES]
    if pickles:
        raise ValueError(
            f"{model}: holds {pickles[0]}, a pickle, and no safetensors. Loading a pickle can run any code, so it is "
            "refused. Convert it where you trust it: safetensors.torch.save_file(torch.load(file, weights_only=True), "
            "'model.safetensors')."
        )
    raise ValueError(
        f"{model}: no .safetensors file is there. Pass a folder that save_pretrained wrote, a .safetensors file, or a "
        "Hub id."
    )


def _shards(index: Path) -> list[Path]:
    """The files that a sharded checkpoint's index names: just those, not what else may lie beside them."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{index}: no valid index ({error!r}). Download the checkpoint again.") from error
    for name, file in zip(names, files, strict=True):
        if Path(name).name != name or not file.is_file():
            raise ValueError(f"{index}: names {name!r}, but there is no such file beside it. Download it again.")
    return files


def _download(model_id: str) -> Path:
    if model_id.startswith((".", "/", "~")) or model_id.endswith(".safetensors") or model_id.count("/") > 1:
        raise ValueError(f"{model_id}: no such file or folder. Check the path, or pass a Hub id such as owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{model_id}: no such file or folder here, and the Hub did not give it either ({reason}). "
            "Check the spelling, or pass a folder with .safetensors files."
        ) from error
