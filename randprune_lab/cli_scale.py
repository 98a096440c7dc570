"""The command that masks what is larger than memory: ``randprune mask``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from randprune_lab.terminal import Display, Json, print_json, print_masked


def mask(
    checkpoint: Annotated[str, typer.Argument(help="A folder or file of safetensors, or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    sparsity: Annotated[float, typer.Option(help="Share of the weights that is removed, in [0, 1).")],
    scope: Annotated[
        str,
        typer.Option(
            help="layer: each tensor by itself; global: all as one vector (at random: up to some 260 billion weights)."
        ),
    ] = "layer",
    samples: Annotated[int | None, typer.Option(help="A random mask of M draws.")] = None,
    target_ir: Annotated[
        float | None, typer.Option(help="A random mask of this ir, through T; M is --samples.")
    ] = None,
    sampling_ratio: Annotated[
        float | None, typer.Option("--sampling-ratio", "--sr", help="A random mask of M = sr * C draws.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="C: pruned weights (decrease), kept ones (increase).")] = None,
    power: Annotated[float | None, typer.Option("--power", "-T", help="T: selection weights are |w|**T.")] = None,
    reach: Annotated[float | None, typer.Option("--reach", "-r", help="r: draw from the r * keep largest.")] = None,
    candidate: Annotated[
        int | None, typer.Option(min=0, help="Which of the seed's random masks; 0: the plain one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random masks.")] = 0,
    include: Annotated[str, typer.Option(help="Only tensors that one of these patterns finds (comma-separated).")] = "",
    exclude: Annotated[str, typer.Option(help="No tensor that one of these finds.")] = "",
    device: Annotated[str, typer.Option(help="Where masks are worked out: cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Mask a checkpoint of any size, one tensor in memory at a time; killed and run again, it goes on.

    Without --samples, --target-ir or --sr: the plain magnitude mask. Nothing is trained.
    """
    from randprune_lab.sharded import mask_checkpoint
    from randprune_lab.stored_masks import MaskSettings

    given: dict[str, Any] = {
        "samples": samples,
        "target_ir": target_ir,
        "sampling_ratio": sampling_ratio,
        "power": power,
        "reach": reach,
        "candidate": candidate,
        "randomness": _randomness(samples, target_ir, sampling_ratio, schedule),
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if given["randomness"] is None and settings:
        raise ValueError(
            f"{', '.join(f'--{name}' for name in settings)}: only of random masks. Add --samples, --target-ir or --sr."
        )
    if target_ir is not None and power is not None:
        raise ValueError("--target-ir sets the power itself: leave --power out.")
    if given["randomness"] is not None:
        settings.setdefault("candidate", 1)
    settings |= {"sparsity": sparsity, "scope": scope, "seed": seed, "include": include, "exclude": exclude}
    began = time.monotonic()
    steps: list[str] = []  # empty: there was nothing left to do
    with Display(0, quiet=as_json) as display:

        def show(done: int, of: int, doing: str) -> None:
            steps.append(doing)
            display.progress.update(
                display.bar, description=f"{doing}, MB", completed=done // 10**6, total=max(of // 10**6, 1)
            )

        record = mask_checkpoint(checkpoint, out, MaskSettings.model_validate(settings), device=device, tell=show)
    seconds = time.monotonic() - began
    if as_json:
        print_json({"folder": str(out), **record, "seconds": seconds, "peak_memory": peak_memory()})
    else:
        print_masked(out, record, seconds if steps else None, peak_memory())


def _randomness(samples: int | None, target_ir: float | None, ratio: float | None, schedule: str | None) -> str | None:
    """The field of that name; None: the plain mask."""
    from randprune_lab.checks import check_option
    from randprune_lab.schedules import RATIO_SCHEDULES

    by_ratio = ratio is not None or schedule is not None
    if by_ratio and (samples is not None or target_ir is not None):
        raise ValueError(
            "--sr or --schedule set the number of draws, and so do --samples and --target-ir: pass one kind of them."
        )
    if by_ratio:
        return check_option("schedule", schedule or "decrease", RATIO_SCHEDULES)
    return "target_ir" if target_ir is not None else None if samples is None else "fixed"


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not tell (Windows)."""
    # On Linux from /proc: a process that another one started begins with the other's peak in what getrusage tells.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
