"""What a person reads in a terminal: a line of text or of an error, the tables of each command, the bar of a run."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import statistics
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from randprune_lab.checks import problem_of

if TYPE_CHECKING:
    from randprune_lab.bench import Claim, Measurement
    from randprune_lab.config import RunConfig
    from randprune_lab.contest import Entry
    from randprune_lab.events import Event
    from randprune_lab.packing import PackedSizes
    from randprune_lab.scaling import Fit, Scale, StudyTime, Throughput
    from randprune_lab.state import ExploreState
    from randprune_lab.status import Status
    from randprune_lab.store import RunSummary
    from randprune_lab.tensors import TensorRow
    from randprune_lab.tutorials import Tutorial

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # what a wrong command line raises


def say(text: str, *, error: bool = False, whole: bool = False) -> None:
    """A line of text, on standard output or as an ``error`` on the other one.

    ``whole``: it is not broken where the window ends, so that a command in it can be copied.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True) if error else _console()
    console.print(_printable(text), markup=False, soft_wrap=whole or error)


def complain(error: Exception) -> None:
    """One red line on standard error."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(_printable(_one_line(error)), style="red", markup=False, highlight=False)


def _one_line(error: Any) -> str:
    """An error's text without line breaks; of a pydantic one, each field with its rule."""
    if isinstance(error, USAGE_ERROR):  # its text names the rule, but not what was given
        command = error.ctx.command_path if error.ctx else "randprune"
        return f"{error.format_message()} Given: {shlex.join(['randprune', *sys.argv[1:]])}. See {command} --help."
    if hasattr(error, "errors"):
        return "; ".join(map(_of_field, error.errors()))
    return " ".join(str(error).split())


def _of_field(part: Mapping[str, Any]) -> str:
    """What pydantic found in one field. Our own rules name the fix themselves."""
    return problem_of(part) if part["type"] == "value_error" else f"{problem_of(part)}. Pass another value."


def _printable(text: str) -> str:
    """Names of tensors and files come from anywhere: what would steer a terminal is shown as a question mark."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _console() -> Console:
    """Standard output; wide enough for every table where nobody's window sets a width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def print_json(data: dict[str, Any]) -> None:
    """Valid JSON, whatever numbers are in it."""
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


def print_table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, words: Collection[str] = ()
) -> None:
    """A table. Its first column and those named in ``words`` may wrap; numbers never do."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    cells = [list(row) for row in rows]
    for place, column in enumerate(columns):
        widest = max([len(column), *(len(row[place]) for row in cells)])
        wraps = not place or column in words
        table.add_column(
            column,
            justify="left" if wraps else "right",
            overflow="fold",
            min_width=min(widest, 10) if wraps else widest,
            max_width=90 if column in words else None,
        )
    for row in cells:
        table.add_row(*(Text(_printable(cell), style="red" if cell == "missed" else "") for cell in row))
    console = _console()
    console.print(_printable(title), style="bold", markup=False)
    if not console.is_terminal:
        console.width = 200  # nothing is clipped in a file
    if not words:  # nor in a window: the first column gives way, and if that is not enough, lines are too long for it
        first, *others = table.columns
        least, rest = first.min_width or 1, 2 + sum((one.min_width or 0) + 2 for one in others)
        first.max_width = max(least, console.width - rest)
        console.width = max(console.width, least + 2 + rest)
    console.print(table)


def print_runs(
    config: RunConfig, tables: Mapping[str, Sequence[Mapping[str, Any]]], folders: Mapping[str, Path]
) -> None:
    """A run's stages, the score of its controls beside it, and where they lie; tables by ``store.stage_table``."""
    from randprune_lab.card import shown_name
    from randprune_lab.metrics import METRICS

    name, *others = tables
    metric = next((METRICS[row["metric"]] for row in tables[name]), "score")
    model = shown_name(config.model)
    title = f"{config.task}, {model}, {name}, seed {config.seed}: {metric} on the split that decides nothing"
    rows = []
    for place, row in enumerate(tables[name]):
        plain = row["winner"] == 0
        rows.append(
            (
                str(row["stage"]) if row["stage"] else config.unpruned,
                f"{row['sparsity']:.4f}",
                f"{row['compression']:.1f}x",
                f"{row['whole_model']:.1f}x",
                "" if row["winner"] is None else "plain" if plain else f"mask {row['winner']}",
                "" if row["winner"] is None else f"{row['ir']:.4f}",
                "" if row["winner"] is None else f"{row['swapped']:.1%}",
                "" if plain or not row["samples"] else row["samples"],
                f"{row['score']:.1%}",
                *(f"{tables[other][place]['score']:.1%}" for other in others),
            )
        )
    columns = ("stage", "sparsity", "prunable", "model", "winner", "ir", "swapped", "M", name, *others)
    print_table(title, columns, rows)
    say("prunable, model: compression of the prunable weights and of the whole model.")
    say("ir, swapped: the winner against the plain mask of the same weights. M: masks drawn and added up.")
    for label, folder in folders.items():
        say(f"{label}: {folder} (report.html, model/)")
    if others:
        say("One seed, an illustration: `randprune bench --claims` runs ten.")


def print_listing(title: str, found: Sequence[tuple[RunSummary, Status]]) -> None:
    """The runs of a folder, and why those failed that did."""
    cells = []
    for run, status in found:
        what: tuple[str, ...] = ("?", "?", "?", "")  # its configuration cannot be read
        if config := run.config:
            stages = f"{run.stages_done} of {len(config.stages)}"
            what = (config.task, config.control or config.method, str(config.seed), stages)
        sparsity = "" if run.sparsity is None else f"{run.sparsity:.4f}"
        score = "" if run.score is None else f"{run.score:.1%}"
        cells.append((run.folder.name, shown_state(status), *what, sparsity, score))
    print_table(title, ("run", "status", "task", "method", "seed", "stages", "sparsity", "score"), cells)
    for run, status in found:
        if status.message and not status.is_live:
            say(f"{run.folder.name}: {status.message}", whole=True)


def print_tutorials(listed: Sequence[Tutorial]) -> None:
    """The notebooks, and what one learns from each."""
    for tutorial in listed:
        say(f"{tutorial.file}: {tutorial.title}")
        for goal in tutorial.goals:
            say(f"  - {goal}")
    say("randprune lab opens a copy of them in JupyterLab; --to DIR or --solutions DIR writes one.")


def shown_state(status: Status) -> str:
    """A run's state, with the place of one that is queued."""
    if status.position is None:
        return status.state
    if status.position == 1:
        return f"{status.state}, next"
    teen = status.position % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(status.position % 10, "th")
    return f"{status.state}, {status.position}{ending}"


def print_tensors(model: str, state: ExploreState, rows: Sequence[TensorRow], *, draws: int) -> None:
    """The matrices of a checkpoint."""
    aimed = state.randomness == "target_ir"
    how = f"target ir = {state.target_ir:g}" if aimed else f"T = {state.power:g}"
    title = f"{model} at sparsity {state.sparsity:g} ({1 / (1 - state.sparsity):.3g}x), {how}"
    title += f", r = {state.reach:g}" if state.reach else ", no reach"
    title += ", all prunable tensors as one" if state.scope == "global" else ""
    columns = ["tensor", "weights", "tau", "near tau", "M", *["T"] * aimed, "ir", "swapped"]
    columns += ["ir drawn"] * bool(draws)
    shown = [row for row in rows if row.problem is None]
    cells = [
        [
            row.name,
            f"{row.n:,}",
            "-" if row.threshold is None else f"{row.threshold:.4g}",
            f"{row.near_threshold:.1%}",
            f"{row.samples:,}",
            *([f"{row.power:.4g}"] if aimed else []),
            f"{row.expected_ir:.5f}",
            f"{row.swapped:.2%}",
            *([_mean_and_spread(row.drawn_ir)] if draws else []),
        ]
        for row in shown
    ]
    print_table(title, columns, cells)
    say(
        "tau: the smallest magnitude that the plain mask keeps. near tau: weights from 2/3 tau to 4/3 tau. "
        "M: masks drawn and added up. ir, swapped: expected, in closed form."
        + (f" ir drawn: of {draws} masks, mean ± standard deviation." if draws else "")
    )
    for row in rows:
        if row.problem is not None:
            say(f"not shown: {row.problem}")


def _mean_and_spread(values: tuple[float, ...]) -> str:
    if not values:  # in global scope
        return "-"
    if math.inf in values:
        return "inf"
    mean = f"{statistics.mean(values):.5f}"
    return f"{mean} ± {statistics.stdev(values):.0e}" if len(values) > 1 else mean


def print_sizes(sizes: PackedSizes, target: Path) -> None:
    """What packing saved."""
    ratio = sizes.dense / sizes.packed
    say(
        f"{target}: {sizes.dense:,} bytes of weights, {sizes.packed:,} packed ({ratio:.1f}x smaller); "
        f"{sizes.tensors} tensors as bit-mask and values"
    )


def print_masked(folder: Path, record: Mapping[str, Any], seconds: float | None, peak: int | None) -> None:
    """The tensors of a checkpoint that was masked.

    Args:
        folder: where it lies.
        record: the content of its mask.json.
        seconds: that writing took; None: all was there already.
        peak: bytes of memory that were held; None: not known.
    """
    from randprune_lab.card import notes_told

    totals = record["totals"]
    tensors = {name: facts for shard in record["shards"].values() for name, facts in shard.items()}
    drawn = record["settings"]["candidate"] > 0
    alone = record["settings"]["scope"] == "layer"  # as one vector, no tensor has an ir of its own
    cells = [
        [
            name,
            f"{facts['size']:,}",
            f"{facts['kept']:,}",
            "-" if facts["threshold"] is None else f"{facts['threshold']:.4g}",
            *([f"{facts['samples']:,}", f"{facts['power']:.4g}"] if drawn else []),
            *([_shown_ir(facts.get("ir"))] if drawn and alone else []),
            *([f"{facts['swapped']:.2%}"] if drawn else []),
        ]
        for name, facts in tensors.items()
    ]
    columns = ["tensor", "weights", "kept", "tau", *(["M", "T", *["ir"] * alone, "swapped"] if drawn else [])]
    print_table(f"{record['source']['name']}, masked", columns, cells)
    say(
        f"{totals['kept']:,} of {totals['prunable']:,} prunable weights kept: sparsity {totals['sparsity']:.4f}, "
        f"of all {totals['parameters']:,} parameters {totals['sparsity_of_all']:.4f}"
        + (f"; ir {_shown_ir(totals['ir'])}, swapped {totals['swapped']:.2%}." if drawn else ".")
    )
    say(
        "tau: the smallest magnitude that the plain mask keeps."
        + (" M: masks drawn and added up. ir, swapped: this mask against the plain one." if drawn else "")
    )
    quantized = f", {totals['quantized']} quantized ones" if totals["quantized"] else ""
    say(f"Left alone: {totals['left_alone']} tensors (embeddings, norms, heads and others{quantized}).")
    for note in notes_told(record["notes"]):
        say(f"note: {note}")
    memory = "" if peak is None else f", at most {peak / 1e9:.2f} GB of memory"
    took = "" if seconds is None else "less than a second" if seconds < 1 else f"{seconds:.0f} s"
    how = f"written in {took}{memory}" if took else "was there already, nothing was written"
    say(f"{folder}: {how}. Nothing was trained: fine-tune it before you judge it.")


def _shown_ir(ir: float | None) -> str:
    """None: infinite, or not known of this tensor alone."""
    return "-" if ir is None else f"{ir:.5f}"


def print_scaling(
    title: str,
    rows: Sequence[Scale],
    left_out: Sequence[int],
    fits: Mapping[str, Fit],
    workers: Sequence[Throughput],
    studies: Sequence[StudyTime],
) -> None:
    """Seconds and memory against weights, the lines through them; candidates against workers, studies against runs."""
    cells = [
        (
            f"{row.weights:,}",
            str(row.tensors),
            f"{row.first:.4g}",
            f"{row.following:.4g}",
            f"{row.first * 1e9 / row.weights:.3g}",
            "-" if row.memory is None else f"{row.memory / 1e6:,.0f}",
            "-" if row.memory is None else f"{row.memory * row.tensors / row.weights:.1f}",
            str(row.repeats),
        )
        for row in rows
    ]
    columns = ("weights", "tensors", "first, s", "next, s", "ns a weight", "extra MB", "bytes a weight", "repeats")
    print_table(title, columns, cells)
    say(
        "s: of processor time on a CPU, the median of so many repeats (the largest sizes have one). extra: memory at "
        "the peak beyond the weights of the one tensor that is there at a time, from a million on."
    )
    for size in left_out:
        say(f"left out: {size:,} weights do not fit into the free memory.")
    for name, line in fits.items():
        larger = ", ".join(
            f"{seconds:,.0f} s for {size / 1e9:g} billion" for size, seconds in line.extrapolated.items()
        )
        bound = f" ({line.bound} that, if this power holds on)" if line.bound else ""
        say(
            f"{name}: seconds grow with the power {line.slope:.3f} of the weights (95 % interval {line.low:.3f} to "
            f"{line.high:.3f}, from a million on); {line.seconds_per_billion:.3g} s for a billion. An extrapolation, "
            f"in proportion{bound}: {larger}."
        )
    if workers:
        alone = workers[0].per_second / workers[0].workers
        print_table(
            "candidates of the digits' network judged per second, by processes of one thread",
            ("workers", "per second", "against one"),
            [(str(row.workers), f"{row.per_second:.2f}", f"{row.per_second / alone:.2f}x") for row in workers],
        )
    if studies:
        print_table(
            "a study of the digits' network, two runs at a time",
            ("runs", "s", "s a run"),
            [(str(row.runs), f"{row.seconds:.1f}", f"{row.seconds / row.runs:.2f}") for row in studies],
        )


def print_bench(title: str, rows: list[Measurement]) -> None:
    """What was measured, beside what it should reach."""
    verdicts = {None: "", True: "reached", False: "missed"}
    cells = [(row.name, f"{row.value:,.4g} {row.unit}", row.target or "", verdicts[row.reached]) for row in rows]
    print_table(title, ("what", "measured", "target", ""), cells)


def print_claims(seeds: int, rows: list[Claim]) -> None:
    """Accuracies by budget and sparsity, and the paired differences."""
    cells = [
        (
            str(row.epochs),
            f"{row.sparsity:.4f}",
            *(f"{100 * mean:.1f}" for mean in row.means.values()),
            *(f"{100 * mean:+.1f} ± {100 * half:.1f}" for mean, half in row.differences.values()),
        )
        for row in rows
    ]
    first = rows[0]
    shown = {name: name.removeprefix("randomized-") for name in first.means}
    columns = ("epochs", "sparsity", *shown.values(), *(f"- {shown[other]}" for other in first.differences))
    title = f"digits, mlp, {seeds} seeds: mean test accuracy (%); randomized minus the others, paired, 95 % intervals"
    print_table(title, columns, cells)
    say(
        "epochs: of fine-tuning a stage (imp-matched trains as many more as judging takes). At few epochs part of "
        "every gap is under-training."
    )


def print_contest(base: RunConfig, seeds: int, entries: list[Entry]) -> None:
    """Accuracies by method and density, and how far each is ahead of plain magnitude pruning."""
    by_row: dict[str, list[Entry]] = {}
    for entry in entries:
        by_row.setdefault(entry.row, []).append(entry)
    densities = sorted({entry.density for entry in entries if entry.density < 1}, reverse=True)
    cells = []
    for row, ours in by_row.items():
        known = {entry.density: entry for entry in ours}
        accuracies = [_accuracy(known.get(density, known.get(1.0))) for density in densities]
        ahead = [_ahead(known.get(density)) for density in densities]
        cells.append((row, *accuracies, *ahead, f"{statistics.fmean(entry.seconds for entry in ours):.0f}"))
    columns = (
        "",
        *(f"{density:.3g}" for density in densities),
        *(f"- magn. {density:.3g}" for density in densities),
        "s",
    )
    epochs = base.dense_epochs + base.max_epochs
    title = f"{base.task}, {base.model}, seeds 0 to {seeds - 1}, {epochs} epochs each: test accuracy (%) by density"
    print_table(title, columns, cells)
    say(
        "± half the width of the 95 % t interval. - magn.: ahead of magnitude, paired by seed. s: CPU seconds of a "
        "run. ! a run diverged, * a learned mask gave up a tensor."
    )
    for row, why in {entry.row: entry.refused for entry in entries if entry.refused}.items():
        say(f"{row}, refused: {why}")


def _accuracy(entry: Entry | None) -> str:
    if entry is None or entry.mean is None:
        return "" if entry is None else "refused" if entry.refused else "diverged"
    half = "" if entry.half is None else f" ± {100 * entry.half:.1f}"
    return f"{100 * entry.mean:.1f}{half}{'!' * bool(entry.diverged)}{'*' * bool(entry.collapsed)}"


def _ahead(entry: Entry | None) -> str:
    return "" if entry is None or entry.ahead is None else f"{100 * entry.ahead[0]:+.1f} ± {100 * entry.ahead[1]:.1f}"


def _named(sizes: Mapping[str, int], most: int = 6) -> str:
    """The first names with their numbers of weights."""
    names = [f"{name} ({size:,})" for name, size in sizes.items()]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def epochs_of(event: Event, config: RunConfig) -> float:
    """How many of a run's planned epochs an event ends; of a race, each candidate ends an equal share."""
    return {"epoch_finished": 1, "candidate_scored": config.judging_epochs / config.candidates}.get(event.kind, 0)


class Display:
    """A bar on standard error: what is being trained, how far it is, how long it has taken and will take."""

    def __init__(self, total: float, *, quiet: bool, done: float = 0) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("so far,"),
            TimeRemainingColumn(),
            TextColumn("to go"),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self.quiet = quiet
        self.bar = self.progress.add_task("starting", total=total, completed=round(done))

    def runs_done(self, done: int, of: int) -> None:
        """So many of so many runs are done."""
        self.progress.update(self.bar, description="runs", completed=done, total=of)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tell(self, text: str, *, quietly: bool = False) -> None:
        """A line above the bar; ``quietly`` not where only JSON is wanted."""
        if quietly and self.quiet:
            return
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def follow(self, folder: Path, config: RunConfig, events: Iterator[Event]) -> None:
        """Show a run until it ends. When it is stopped or fails, say how to go on."""
        name = config.control or config.method
        hint = f"Go on with: randprune resume {shlex.quote(str(folder))}"
        self.tell(f"{name}: {folder}", quietly=True)
        try:
            self._show(folder, name, config, events)
        except KeyboardInterrupt:
            self.progress.stop()
            say(f"stopped. {hint}", error=True)
            sys.exit(130)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({error}). What was saved is intact. {hint}") from error
        except RuntimeError as error:
            from randprune_lab.training import OutOfMemory

            if isinstance(error, OutOfMemory):
                on_ray = config.executor == "ray" and config.compares
                raise ValueError(f"{error} {hint} {'--executor serial' if on_ray else '--wave 1'}") from error
            raise ValueError(f"{error} The run stopped; what was saved lies in {folder}.") from error

    def _show(self, folder: Path, name: str, config: RunConfig, events: Iterator[Event]) -> None:
        from randprune_lab.status import Attended

        stages = len(config.stages)
        # A page, too, sees this run and can stop it.
        with Attended(folder), contextlib.closing(events):  # type: ignore[type-var]
            for event in events:
                match event.to_json():
                    case {"kind": "candidate_scored", "stage": stage, "candidate": candidate}:
                        doing = f"stage {stage} of {stages}, mask {candidate + 1} of {config.candidates} judged"
                    case {"kind": "epoch_finished", "phase": "dense", "epoch": epoch}:
                        doing = f"dense, epoch {epoch} of {config.dense_epochs}"
                    case {"kind": "epoch_finished", "stage": stage, "epoch": epoch}:
                        doing = f"stage {stage} of {stages}, epoch {epoch} of {config.max_epochs}"
                    case {"kind": "run_started", "prunable": prunable}:
                        self.tell(f"prunes {len(prunable)} of its tensors: {_named(prunable)}", quietly=True)
                        continue
                    case {"kind": "warned", "text": text}:
                        self.tell(f"warning: {text}")
                        continue
                    case _:
                        continue
                self.progress.update(self.bar, description=f"{name}: {doing}", advance=epochs_of(event, config))
