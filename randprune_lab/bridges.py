"""To and from ``torch.nn.utils.prune``, for those whose tools expect it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from randprune_lab.checks import check_option
from randprune_lab.masks import Masks


def to_torch_prune(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Put masks on a model in torch's form: a parameter ``weight`` becomes ``weight_orig`` and ``weight_mask``.

    ``masks``: parameter name -> bool tensor of the parameter's shape, True = kept. The weights outside the masks stay
    in ``weight_orig``. All is checked first: after an error the model is as it was.

    Raises:
        ValueError: there is no such parameter, the mask does not fit it, it is pruned already, or two layers share it.
    """
    for name, mask in masks.items():
        _check(model, name, mask)
    for name, mask in masks.items():
        owner, _, own_name = name.rpartition(".")
        on_device = mask.to(model.get_parameter(name).device)
        prune.custom_from_mask(model.get_submodule(owner), own_name, on_device)  # type: ignore[no-untyped-call]


def from_torch_prune(model: nn.Module) -> Masks:
    """Make what ``torch.nn.utils.prune`` did to a model permanent, and return its masks by parameter name.

    Afterwards ``weight`` is a parameter again, with exact zeros outside its mask; torch puts it after the others of its
    module.

    Raises:
        ValueError: nothing is pruned.
    """
    pruned = [
        (module_name, module, hook._tensor_name)
        for module_name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    if not pruned:
        raise ValueError(
            f"the model ({type(model).__name__}) is not pruned by torch.nn.utils.prune. Prune it first, or, if its "
            "zeros are in place already, read the masks as weight != 0."
        )
    masks: Masks = {}
    for module_name, module, own_name in pruned:
        mask = getattr(module, f"{own_name}_mask").bool()
        prune.remove(module, own_name)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            module.get_parameter(own_name).masked_fill_(~mask, 0)  # torch multiplies: -0.0, and NaN where it was inf
        masks[f"{module_name}.{own_name}".removeprefix(".")] = mask
    return masks


def _check(model: nn.Module, name: str, mask: Tensor) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if f"{name}_orig" in parameters:
        raise ValueError(f"{name}: is pruned by torch.nn.utils.prune already. Call from_torch_prune(model) first.")
    parameter = parameters[check_option("parameter", name, parameters)]
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != parameter.shape:
        given = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"the mask of {name} is {given}: must be torch.bool of shape {tuple(parameter.shape)}, True = kept. "
            "Pass mask.bool() of the parameter's own mask."
        )
    owners = [module for module in model.modules() for own in module._parameters.values() if own is parameter]
    if len(owners) > 1:
        shared = [other for other, own in parameters.items() if own is parameter]
        raise ValueError(
            f"{name}: layers share it ({', '.join(shared)}), and torch.nn.utils.prune would part them. "
            "Leave its mask out, or give each layer a copy of its own."
        )
