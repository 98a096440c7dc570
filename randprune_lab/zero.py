"""ZerO: a network that starts from zeros and ones, without any random number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from randprune_lab.nets import Block
from randprune_lab.pretrained import is_pretrained

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_SHORTCUTS = ("shortcut", "downsample")  # what others call the other path of a residual block


def zero_initialize(model: nn.Module) -> None:
    """Set the weights of ``model`` in place as ZerO does (Zhao, Schaefer & Anandkumar 2021, arXiv 2110.12661).

    Linear layers: ``zero_matrix``. Convolutions: the same at the kernel's centre (place k // 2), 0 elsewhere; of a
    grouped one, in each group. Their biases 0; norms 1 and bias 0. The global random state is neither read nor moved.

    Ours, where we know of no rule that fits the network as it is (the authors' first residual networks have a skip
    around every convolution, and all of those 0):

     - A residual block (``nets.Block``, or a module with ``shortcut`` or ``downsample``, be it None) is its shortcut at
       first: its last layer, a norm if it ends with one, has weight 0. Not so a ``nets.Block`` that adds channels: its
       shortcut has only zeros for them, which a ReLU would never let go of.
     - So are both halves of a block of a transformers model: the last matrix of attention and that of the feed-forward
       part are 0.
     - Embeddings (and output layers tied to one), transposed convolutions, and whatever else has no rule keep the
       values that they have. So do layers whose weight is computed (parametrized).

    A unit that copies an input which is never positive is never positive itself, and through torch's ReLU it never
    learns. So start 52 of the 300 first hidden units of LeNet-300-100 on MNIST, dark pixels, and 58 where those are
    negative.

    Raises:
        ValueError: it is no module, has no linear or convolutional layer, or a lazy one that never saw a batch.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}: must be a torch.nn.Module. Pass the network itself.")
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [module for module in model.modules() if _is_matrix(module) and id(module.weight) not in embedded]
    if not matrices:
        raise ValueError(
            f"model ({type(model).__name__}): must have a linear or convolutional layer with a weight of its own, "
            "which is what ZerO sets. Pass such a network, or keep its initialization."
        )
    for module in matrices:
        if isinstance(module.weight, nn.UninitializedParameter):
            raise ValueError(f"{module}: has no shape yet. Run one batch through the network before.")
    with torch.no_grad():
        for module in matrices:
            _set_matrix(module)
        for module in model.modules():
            if isinstance(module, _NORMS):
                _fill(module, 1.0)
        for module in _branch_ends(model):
            _fill(module, 0.0)


def zero_matrix(outputs: int, inputs: int) -> Tensor:
    """ZerO's matrix, float32 of shape (outputs, inputs): arXiv 2110.12661, Algorithm 1.

    The identity; where outputs < inputs its first rows. Where outputs > inputs the corner of a Hadamard matrix of order
    2**m times 2**(-(m - 1) / 2), m = ceil(log2(outputs)): an identity there would leave the added outputs equal to 0
    for good. (The authors' example notebook has 2**(-m / 2); the paper's factor makes up for what a ReLU takes away.)
    """
    if outputs <= inputs:
        return torch.eye(outputs, inputs)
    m = (outputs - 1).bit_length()
    ones = np.bitwise_count(np.arange(outputs)[:, None] & np.arange(inputs))  # Sylvester's construction
    signs = 1 - 2 * (ones & 1).astype(np.float32)
    return torch.from_numpy(signs) * 2 ** (-(m - 1) / 2)


def _is_matrix(module: nn.Module) -> bool:
    """A linear or convolutional layer whose weight is a plain parameter."""
    own = module._parameters.get("weight") is not None
    return own and (isinstance(module, (nn.Linear, *_CONVOLUTIONS)) or _is_transposed(module))


def _is_transposed(module: nn.Module) -> bool:
    """GPT-2's own linear layer, of shape (inputs, outputs)."""
    return type(module).__name__ == "Conv1D"


def _set_matrix(module: nn.Module) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    _fill(module, 0.0)
    if isinstance(module, _CONVOLUTIONS):
        outputs, inputs, *kernel = weight.shape
        centre: tuple[Any, ...] = (..., *(size // 2 for size in kernel))
        weight[centre] = zero_matrix(outputs // module.groups, inputs).repeat(module.groups, 1).to(weight)
    elif _is_transposed(module):
        weight.copy_(zero_matrix(weight.shape[1], weight.shape[0]).T)
    else:
        weight.copy_(zero_matrix(*weight.shape))


def _fill(module: nn.Module, value: float) -> None:
    """All weights ``value``, all biases 0."""
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("weight", "bias"):
            parameter.fill_(value if name == "weight" else 0.0)


def _branch_ends(model: nn.Module) -> Iterator[nn.Module]:
    """The last layer of every residual branch, by its place in the block."""
    for block in model.modules():
        if _is_residual(block):
            branch = [child for name, child in block.named_children() if name not in _SHORTCUTS]
            layers = [module for child in branch for module in child.modules() if _is_matrix(module) or _scales(module)]
            yield from layers[-1:]
    for block in _transformer_blocks(model):
        named = [(name, module) for name, module in block.named_modules() if _is_matrix(module)]
        gates = [at for at, (name, _) in enumerate(named) if "gate" in name]  # a third matrix of the feed-forward part
        forward = gates[0] if gates else len(named) - 2
        yield from (named[forward - 1][1], named[-1][1])  # attention's output, and the feed-forward part's


def _is_residual(module: nn.Module) -> bool:
    return not module.new if isinstance(module, Block) else any(hasattr(module, name) for name in _SHORTCUTS)


def _scales(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and module._parameters.get("weight") is not None


def _transformer_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Those of a network of the transformers library: lists of modules of one class with four matrices or more each."""
    for stack in model.modules() if is_pretrained(model) else ():
        if isinstance(stack, nn.ModuleList | nn.Sequential) and len({type(block) for block in stack}) == 1:
            counts = [sum(map(_is_linear, block.modules())) for block in stack]
            if min(counts) >= 4:
                yield from stack


def _is_linear(module: nn.Module) -> bool:
    return _is_matrix(module) and not isinstance(module, _CONVOLUTIONS)
