"""The command line: ``randprune run``, ``randprune explore``, ``randprune bench``."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shlex
import statistics
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Two busy torch processes on few cores otherwise spin against each other. It counts only before torch is imported,
# which is why everything that needs torch is imported inside the commands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from collections.abc import Iterable

    from randprune_lab.bench import Measurement
    from randprune_lab.config import RunConfig
    from randprune_lab.events import DenseTrained, StageFinished
    from randprune_lab.explore import ExploreSettings, TensorRow

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A lab for randomized iterative magnitude pruning (arXiv 2310.13183).",
)
_UsageError: Any = typer.BadParameter.__bases__[0]  # what a wrong command line raises

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """The ``randprune`` command. What its user can mend is said in one red line, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign gets a question mark
    try:
        sys.exit(app(standalone_mode=False, args=sys.argv[1:] or ["--help"]))
    except (ValueError, _UsageError) as error:
        line = _printable(_one_line(error))
        Console(stderr=True, soft_wrap=True).print(line, style="red", markup=False, highlight=False)
        sys.exit(2)


@app.command()
def run(
    seed: Annotated[int, typer.Option(help="Of initialization, batch order and masks.")] = 0,
    as_json: _Json = False,
) -> None:
    """Prune a network on real handwritten digits: plain masks beside the best of eight candidates."""
    from randprune_lab.config import RunConfig
    from randprune_lab.engine import prune
    from randprune_lab.events import CandidateScored, DenseTrained, StageFinished

    dense: list[DenseTrained] = []
    stages: dict[str, list[StageFinished]] = {}
    with Console(stderr=True).status("training the dense network") as status:
        for method in ("imp", "randomized"):
            config = RunConfig(method=method, seed=seed)
            stages[method] = []
            for event in prune(config):
                match event:
                    case DenseTrained():
                        dense.append(event)
                    case CandidateScored():
                        status.update(f"{method}: stage {event.stage} of {len(config.stages)}, mask {event.candidate}")
                    case StageFinished():
                        stages[method].append(event)
    if as_json:
        finished = {method: [dataclasses.asdict(stage) for stage in done] for method, done in stages.items()}
        _print_json({"config": config.model_dump(), "dense": dataclasses.asdict(dense[0]), **finished})
    else:
        _print_run(config, dense[0], stages)


def _print_run(config: RunConfig, dense: DenseTrained, stages: dict[str, list[StageFinished]]) -> None:
    title = f"{config.task}, {config.model}, seed {config.seed}: accuracy on the test split, which decides nothing"
    accuracy = f"{dense.test.accuracy:.1%}"
    rows = [("dense", "0.0000", "1.0x", "1.0x", "", "", "", accuracy, accuracy)]
    for plain, chosen in zip(stages["imp"], stages["randomized"], strict=True):
        whole = dense.parameters / (dense.parameters - dense.prunable + chosen.kept)
        rows.append(
            (
                str(chosen.stage),
                f"{chosen.sparsity:.4f}",
                f"{dense.prunable / chosen.kept:.1f}x",
                f"{whole:.1f}x",
                f"mask {chosen.winner}" if chosen.winner else "plain",
                f"{chosen.ir:.4f}",
                f"{chosen.swapped:.1%}",
                f"{plain.test.accuracy:.1%}",
                f"{chosen.test.accuracy:.1%}",
            )
        )
    columns = "stage", "sparsity", "prunable", "model", "winner", "ir", "swapped", "plain", "randomized"
    _print_table(title, columns, rows)
    _console().print(
        "prunable, model: compression of the prunable weights and of the whole model.\n"
        f"randomized: the best of {config.candidates} masks a stage, the plain one among them, each judged by "
        f"{config.emep_epochs} epoch. ir and swapped: its winner against the plain mask of the same weights.\n"
        f"One seed, and randomized trained {config.candidates * config.emep_epochs} epochs more a stage, to judge: "
        "an illustration, not a result."
    )


@app.command()
def explore(
    model: Annotated[str, typer.Argument(help="A folder or file of safetensors, or a Hub id.")],
    sparsity: Annotated[float, typer.Option(help="Share of each matrix that is removed, in [0, 1).")] = 0.9375,
    sampling_ratio: Annotated[float, typer.Option("--sampling-ratio", "--sr", help="sr: M = sr * C draws.")] = 5e-5,
    schedule: Annotated[str, typer.Option(help="C: pruned weights (decrease), kept ones (increase).")] = "decrease",
    samples: Annotated[int | None, typer.Option(help="M itself; then sr does not count.")] = None,
    power: Annotated[float, typer.Option("--power", "-T", help="T: selection weights are |w|**T.")] = 5.0,
    reach: Annotated[float | None, typer.Option("--reach", "-r", help="r: draw from the r * keep largest.")] = None,
    ties: Annotated[str, typer.Option(help="Who is kept among equal counts: random or magnitude.")] = "random",
    draw: Annotated[int, typer.Option(min=0, help="Draw this many masks of each matrix, too.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the masks drawn.")] = 0,
    include: Annotated[str, typer.Option(help="Only tensors whose name this regular expression finds.")] = "",
    exclude: Annotated[str | None, typer.Option(help="No tensor whose name this one finds.")] = None,
    as_json: _Json = False,
) -> None:
    """Every weight matrix of a checkpoint: its threshold, and the randomness that a mask of it would have."""
    from randprune_lab.checks import check_option
    from randprune_lab.explore import ExploreSettings, tensor_table
    from randprune_lab.keepcurve import TIES
    from randprune_lab.schedules import RATIO_SCHEDULES

    settings = ExploreSettings(
        sparsity=sparsity,
        sampling_ratio=sampling_ratio,
        schedule=check_option("schedule", schedule, RATIO_SCHEDULES),
        samples=samples,
        power=power,
        reach=reach,
        ties=check_option("ties", ties, TIES),
        draw=draw,
        seed=seed,
    )
    rows = list(tensor_table(model, settings, include=include, exclude=exclude))
    if as_json:
        _print_json({"settings": dataclasses.asdict(settings), "tensors": [dataclasses.asdict(row) for row in rows]})
    else:
        _print_tensors(model, settings, rows)


def _print_tensors(model: str, settings: ExploreSettings, rows: Iterable[TensorRow]) -> None:
    title = f"{model} at sparsity {settings.sparsity:g} ({1 / (1 - settings.sparsity):.3g}x), T = {settings.power:g}"
    title += f", r = {settings.reach:g}" if settings.reach else ", no reach"
    columns = ["tensor", "weights", "tau", "near tau", "M", "ir", "swapped"] + ["ir drawn"] * bool(settings.draw)
    cells = [
        [
            row.name,
            f"{row.n:,}",
            "-" if row.threshold is None else f"{row.threshold:.4g}",
            f"{row.near_threshold:.1%}",
            f"{row.samples:,}",
            f"{row.expected_ir:.5f}",
            f"{row.swapped:.2%}",
            *([_mean_and_spread(row.drawn_ir)] if settings.draw else []),
        ]
        for row in rows
    ]
    _print_table(title, columns, cells)
    _console().print(
        "tau: the smallest magnitude that the plain mask keeps. near tau: weights from 2/3 tau to 4/3 tau. "
        "M: masks drawn and added up. ir, swapped: expected, in closed form."
        + (f" ir drawn: of {settings.draw} masks, mean ± standard deviation." if settings.draw else "")
    )


def _mean_and_spread(values: tuple[float, ...]) -> str:
    if math.inf in values:
        return "inf"
    mean = f"{statistics.mean(values):.5f}"
    return f"{mean} ± {statistics.stdev(values):.0e}" if len(values) > 1 else mean


@app.command()
def bench(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repetitions; medians count.")] = 21,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of torch.")] = 2,
    as_json: _Json = False,
) -> None:
    """What a randomized mask costs on this machine, beside a plain one and the paper's loop (about a minute)."""
    from randprune_lab.bench import speed_table

    with Console(stderr=True).status("measuring"):
        rows = speed_table(device=device, repeats=repeats, threads=threads)
    if as_json:
        measured = [dataclasses.asdict(row) for row in rows]
        _print_json({"device": device, "repeats": repeats, "threads": threads, "measured": measured})
    else:
        _print_bench(f"{device}, {threads} threads, medians of {repeats}", rows)


def _print_bench(where: str, rows: list[Measurement]) -> None:
    verdicts = {None: "", True: "reached", False: "missed"}
    cells = [(row.name, f"{row.value:,.4g} {row.unit}", row.target or "", verdicts[row.reached]) for row in rows]
    title = f"768 x 3072, sparsity 0.9375, sr = 5e-5, T = 5, no reach ({where})"
    _print_table(title, ("what", "measured", "target", ""), cells)


def _print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table whose first column may wrap; numbers never do."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    cells = [list(row) for row in rows]
    for place, column in enumerate(columns):
        widest = max([len(column), *(len(row[place]) for row in cells)])
        table.add_column(
            column,
            justify="right" if place else "left",
            overflow="fold",
            min_width=widest if place else min(widest, 14),
        )
    for row in cells:
        table.add_row(*(Text(_printable(cell), style="red" if cell == "missed" else "") for cell in row))
    console = _console()
    console.print(_printable(title), style="bold", markup=False)
    console.print(table)


def _console() -> Console:
    """Standard output; wide enough for every table where nobody's window sets a width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _printable(text: str) -> str:
    """Names of tensors and files come from anywhere: what would steer a terminal is shown as a question mark."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON knows no infinity: null stands for it."""
    match value:
        case dict():
            return {name: _finite(part) for name, part in value.items()}
        case list() | tuple():
            return [_finite(part) for part in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _one_line(error: Any) -> str:
    """An error's text without line breaks; of a pydantic one, each field with its rule."""
    if isinstance(error, _UsageError):  # its text names the rule, but not what was given
        command = error.ctx.command_path if error.ctx else "randprune"
        return f"{error.format_message()} Given: {shlex.join(['randprune', *sys.argv[1:]])}. See {command} --help."
    if hasattr(error, "errors"):
        return "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
    return " ".join(str(error).split())
