"""What sparsity bought, measured: bytes on disk and latency, of a pruned network against its dense self."""

from __future__ import annotations

import copy
import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn

from randprune_lab.checks import check_option, check_whole
from randprune_lab.packing import packed_bytes

_WARM_UP = 3
_SMALL = 0.1  # a difference in latency below this share says nothing on a machine that does other things too


@dataclasses.dataclass(frozen=True)
class Benefit:
    """What sparsity bought on one device, for one batch.

    Attributes:
        dense_bytes, saved_bytes, packed_bytes: the weights as safetensors: dense; pruned, where zeros are stored like
            any other number; pruned, as bit-mask and values (``randprune pack``).
        dense_ms, pruned_ms, csr_ms: median latency of the batch in milliseconds; csr: the pruned linear layers as
            torch's sparse CSR matrices; None if that could not be measured.
        csr_layers, layers: how many of the pruned tensors could be made sparse CSR matrices, of how many.
        csr_difference: largest absolute difference between the outputs with and without CSR.
        csr_problem: why CSR was not measured; "" if it was.
        examples, repeats, device, threads: the batch size, how often each was timed, where, with how many CPU threads.
    """

    dense_bytes: int
    saved_bytes: int
    packed_bytes: int
    dense_ms: float
    pruned_ms: float
    csr_ms: float | None
    csr_layers: int
    layers: int
    csr_difference: float | None
    csr_problem: str
    examples: int
    repeats: int
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, record: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave; fields that later versions may add are ignored."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})


def measure_benefit(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    repeats: int = 20,
) -> Benefit:
    """Measure a pruned network against its dense self, on the device where it is.

    Copies are measured, in eval mode and without gradients, one after the other in turn, so that what else the machine
    does meets all alike. The model, its gradients and the global random state stay as they were.

    Args:
        model: the pruned network, zeros in place.
        inputs: one batch; a mapping is passed as keyword arguments.
        dense: the state dict of the dense network.
        names: the pruned parameters.
        repeats: how often each is timed; the median counts.

    Raises:
        ValueError: ``repeats`` is below 1, a name is unknown, or ``dense`` is of another network.
    """
    _check(model, names, repeats)
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in inputs.items()} if isinstance(inputs, Mapping) else inputs
    batch = batch.to(device) if isinstance(batch, Tensor) else batch
    with torch.random.fork_rng(), torch.no_grad():
        networks = {"dense": copy.deepcopy(model).eval(), "pruned": copy.deepcopy(model).eval()}
        _load(networks["dense"], dense)
        sparse, count, problem = _with_csr(model, names)
        difference = None
        if sparse is not None:
            difference, problem = _difference(networks["pruned"], sparse, batch)
        if sparse is not None and not problem:
            networks["csr"] = sparse
        latency = _latencies(networks, batch, repeats, device)
    return Benefit(
        dense_bytes=len(save(_stored(networks["dense"]))),
        saved_bytes=len(save(_stored(model))),
        packed_bytes=packed_bytes(_stored(model)),
        dense_ms=latency["dense"],
        pruned_ms=latency["pruned"],
        csr_ms=latency.get("csr"),
        csr_layers=count,
        layers=len(names),
        csr_difference=difference,
        csr_problem=problem,
        examples=len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch),
        repeats=repeats,
        device=device.type,
        threads=torch.get_num_threads(),
    )


def read_benefit(folder: str | Path) -> Benefit | None:
    """What sparsity bought, as it was measured at the end of a run; None if it was not."""
    try:
        return Benefit.of_json(json.loads((Path(folder) / "benefit.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def benefit_sentences(benefit: Benefit) -> list[str]:
    """What the numbers say, in plain sentences: disk, latency as it is, latency with sparse matrices."""
    return [_disk(benefit), _latency(benefit), _csr(benefit)]


def _disk(benefit: Benefit) -> str:
    ratio = benefit.dense_bytes / benefit.packed_bytes
    packed = f"{ratio:.1f} times smaller" if ratio >= 1.05 else "no gain at this sparsity"
    return (
        f"On disk the pruned network takes {_size(benefit.saved_bytes)} against {_size(benefit.dense_bytes)} dense: "
        f"every zero is stored like any other number. As bit-mask and values (randprune pack) it takes "
        f"{_size(benefit.packed_bytes)}, {packed}."
    )


def _latency(benefit: Benefit) -> str:
    apart = abs(benefit.pruned_ms / benefit.dense_ms - 1)
    noise = " Both do the same work: the difference is noise." if apart >= _SMALL else ""
    threads = "1 thread" if benefit.threads == 1 else f"{benefit.threads} threads"
    where = f"{benefit.device}, {threads}" if benefit.device == "cpu" else benefit.device
    return (
        f"For a batch of {benefit.examples} the pruned network takes {benefit.pruned_ms:.3g} ms against "
        f"{benefit.dense_ms:.3g} ms dense (median of {benefit.repeats}, {where}): the zeros are multiplied like any "
        f"other number.{noise}"
    )


def _csr(benefit: Benefit) -> str:
    if benefit.csr_ms is None:
        return f"With torch's sparse CSR matrices it was not measured: {benefit.csr_problem}."
    ratio = benefit.dense_ms / benefit.csr_ms
    if abs(ratio - 1) < _SMALL:
        gain = "about as fast as dense"
    else:
        gain = f"{ratio:.1f} times as fast as dense" if ratio > 1 else f"{1 / ratio:.1f} times as slow as dense"
    return (
        f"With {benefit.csr_layers} of {benefit.layers} pruned tensors as torch's sparse CSR matrices (only nn.Linear "
        f"can have them) it takes {benefit.csr_ms:.3g} ms, {gain}; the outputs differ by at most "
        f"{benefit.csr_difference:.1g}."
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _check(model: nn.Module, names: Sequence[str], repeats: int) -> None:
    if check_whole("repeats", repeats) < 1:
        raise ValueError(f"repeats = {repeats}: at least 1 is needed for a median. Pass for example 20.")
    if not names:
        raise ValueError("names is empty: nothing was pruned. Pass the names of the pruned parameters.")
    parameters = dict(model.named_parameters())
    for name in names:
        check_option("parameter", name, parameters)


def _load(network: nn.Module, dense: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(dense)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"dense is of another network ({reason}). Pass the state dict of this one, dense.") from error


def _with_csr(model: nn.Module, names: Sequence[str]) -> tuple[nn.Module | None, int, str]:
    """A copy whose pruned linear layers have sparse CSR weights, how many these are, and why it could not be made."""
    network = copy.deepcopy(model).eval()
    layers = [network.get_submodule(name.rpartition(".")[0]) for name in names if name.split(".")[-1] == "weight"]
    linear = [layer for layer in layers if type(layer) is nn.Linear]  # others may read their weight in their own way
    if not linear:
        return None, 0, "none of the pruned tensors is the weight of an nn.Linear"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            for layer in linear:
                layer.weight = nn.Parameter(layer.weight.to_sparse_csr(), requires_grad=False)
    except RuntimeError as error:
        return None, 0, _reason(error)
    return network, len(linear), ""


def _difference(
    network: nn.Module, sparse: nn.Module, batch: Tensor | Mapping[str, Tensor]
) -> tuple[float | None, str]:
    """The largest absolute difference of the outputs; or None, and why the sparse network cannot be run."""
    plain = _output(network, batch)
    try:
        other = _output(sparse, batch)
    except Exception as error:  # not every device, dtype and layer takes a CSR weight
        return None, _reason(error)
    return float((plain.cpu().double() - other.cpu().double()).abs().max()), ""


def _output(network: nn.Module, batch: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The logits, or what else the network's first output tensor is."""
    output = network(**batch) if isinstance(batch, Mapping) else network(batch)
    if isinstance(output, Mapping):  # of transformers
        output = output.get("logits", tuple(output.values()))
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:200] or type(error).__name__


def _latencies(
    networks: Mapping[str, nn.Module], batch: Tensor | Mapping[str, Tensor], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median milliseconds of each; there and back again in turn, so that none is always the first."""
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(-_WARM_UP, repeats):
        for name in sorted(networks, reverse=number % 2 == 1):
            start = time.perf_counter()
            _output(networks[name], batch)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            if number >= 0:
                taken[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}


def _stored(network: nn.Module) -> dict[str, Tensor]:
    """What a file of the network holds: a tensor that two layers share stands there once."""
    once = {id(tensor): name for name, tensor in reversed(network.state_dict(keep_vars=True).items())}
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if name in once.values()}
