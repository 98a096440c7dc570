"""One run over several processes (``torchrun``, ``accelerate launch``): what they share out, add up and compare.

Every process, a *rank*, has all the data and the whole network. Of each batch it takes its share of the rows; gradients
are summed over the ranks before anything looks at them, so all take the same step. With one process nothing here does
anything. What every rank calls must be called by all, in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from randprune_lab.config import RunConfig


def number() -> int:
    """Of processes that do this run together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Of this process, from 0; the first one writes and speaks for all."""
    return dist.get_rank() if number() > 1 else 0


def end() -> None:
    """Nothing more is to be done together."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def check(config: RunConfig, model: nn.Module) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        ValueError: the network looks at a batch as a whole, or the candidates are to be judged elsewhere.
    """
    if number() == 1:
        return
    if config.executor == "ray" and config.compares:
        raise ValueError(
            f"executor = 'ray' in {number()} processes: each would give its candidates away. Start one process, or "
            "pass executor='lockstep'."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name} is a {type(module).__name__}: in {number()} processes each would take its mean over its share "
                "of a batch only. Start one process, or take a model with another normalization."
            )


def share(rows: Tensor) -> Tensor:
    """Those of a batch's rows that are this rank's: numbers differ by one at most.

    Where there are fewer rows than ranks the others get the first one, too, of which ``weights`` makes nothing: then
    the gradients of all have the same form.
    """
    mine = rows[rank() :: number()]
    return mine if len(mine) else rows[:1]


def weights(counts: Tensor, rows: int) -> Tensor:
    """What means over this rank's share weigh in those over the whole batch of ``rows`` rows.

    ``counts``: over how many each mean is taken here. The products of means and weights, summed over the ranks, are the
    means over the batch.
    """
    mine = counts.double() * (rank() < rows)
    whole = mine.clone()
    dist.all_reduce(whole)
    return (mine / whole).float()


def add_up(parameters: Iterable[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Sum the gradients of ``parameters``, in place, and ``values`` (single numbers) over the ranks, in one message."""
    if number() == 1:
        return list(values)
    parts = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts += [value.detach().clone() for value in values]
    whole = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(whole)
    sizes = [part.numel() for part in parts]
    for part, summed in zip(parts, torch.split(whole, sizes), strict=True):
        part.copy_(summed.view_as(part))
    return parts[len(parts) - len(values) :]


def dealt(rows: int) -> Tensor | None:
    """The numbers of the rows that this rank answers for, equally many for each; None: all of them.

    Row i is that of rank i % number; some of the first come again, so that all have as many.
    """
    if number() == 1:
        return None
    return torch.arange(rank(), rows + -rows % number(), number()) % rows


def gathered(answers: Tensor, rows: int) -> Tensor:
    """The answers of all ranks in the order of the rows: the inverse of ``dealt``."""
    if number() == 1:
        return answers
    parts = [torch.empty_like(answers) for _ in range(number())]
    dist.all_gather(parts, answers.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)[:rows]


def all_agree(yes: bool, device: torch.device) -> bool:
    """Every rank says yes."""
    if number() == 1:
        return yes
    least = torch.tensor(int(yes), device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return bool(least)


def from_first(make: Callable[[], dict[str, Tensor]], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that the first rank makes; the others, which do not make any, get them.

    ``like``: tensors of the same names, shapes, dtypes and devices.
    """
    if number() == 1:
        return make()
    made = make() if rank() == 0 else {name: torch.empty_like(tensor) for name, tensor in like.items()}
    for name in like:
        dist.broadcast(made[name], src=0)
    return made


def check_same(what: str, named: Mapping[str, Tensor | str]) -> None:
    """Tensors, or words, of one name are the same on every rank, bit for bit.

    Raises:
        RuntimeError: on every rank: which rank differs from the first one, and in what.
    """
    if number() == 1:
        return
    mine = {name: value if isinstance(value, str) else digest(value) for name, value in named.items()}
    found: list[dict[str, str]] = [{}] * number()
    dist.all_gather_object(found, mine)
    for other, theirs in enumerate(found):
        for name in found[0] | theirs:
            if theirs.get(name) != found[0].get(name):
                raise RuntimeError(
                    f"rank {other} does not agree with rank 0 on the {what} {name}. Give every process the same "
                    "command, data, files and kind of device, and resume."
                )


def digest(tensor: Tensor) -> str:
    """Of a tensor's bits."""
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(bits.numpy().data, digest_size=16).hexdigest()
