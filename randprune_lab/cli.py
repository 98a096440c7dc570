"""The command line: ``randprune run``, ``resume``, ``stop``, ``runs``, ``report``, ``explore`` and more."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from randprune_lab.cli_bench import bench, methods
from randprune_lab.cli_scale import mask
from randprune_lab.cli_study import study
from randprune_lab.terminal import (
    USAGE_ERROR,
    Display,
    Json,
    complain,
    epochs_of,
    print_json,
    print_listing,
    print_runs,
    print_sizes,
    print_tensors,
    print_tutorials,
    say,
    shown_state,
)

# Two busy torch processes on few cores otherwise spin against each other. It counts only before torch is imported,
# which is why everything that needs torch is imported inside the commands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from randprune_lab.config import RunConfig
    from randprune_lab.events import Checkpoint, Event
    from randprune_lab.status import Status


def main() -> None:
    """The ``randprune`` command. What its user can mend is said in one red line, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign gets a question mark
    try:
        _refuse_several(" ".join(sys.argv[1:2]))
        code = _app()(standalone_mode=False, args=sys.argv[1:] or ["--help"])
        if "LOCAL_RANK" in os.environ:  # one of several processes
            from randprune_lab import ranks

            ranks.end()
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        complain(RuntimeError("stopped."))
        sys.exit(130)
    except (ValueError, OSError, USAGE_ERROR) as error:
        complain(error)
        sys.exit(2)
    except RuntimeError as error:
        from randprune_lab.training import OutOfMemory

        if not isinstance(error, OutOfMemory):  # while a model was loaded
            raise
        complain(error)
        sys.exit(2)


def _refuse_several(command: str) -> None:
    """What torchrun starts it starts several times; only a run, new or resumed, is shared out."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "LOCAL_RANK" not in os.environ or command in ("run", "resume"):
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(2)  # the first one says it
    raise ValueError(f"randprune {command} is not for several processes, only run and resume are. Start it once.")


def _app() -> typer.Typer:
    commands = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        help="A lab for randomized iterative magnitude pruning (arXiv 2310.13183).",
    )
    commands.command("run", help=_RUN_HELP)(_run_command() if sys.argv[1:2] == ["run"] else lambda: None)
    for command in (
        resume,
        stop,
        runs,
        report,
        explore,
        app,
        lab,
        notebooks,
        pack,
        unpack,
        mask,
        bench,
        methods,
        study,
    ):
        commands.command()(command)
    return commands


_RUN_HELP = (
    "Prune a network: without options, on real handwritten digits, beside a control of equal budget. With a --task of "
    "GLUE the defaults are what the paper used for it (--preset)."
)
_Detach = Annotated[bool, typer.Option(help="In the background: it goes on when this terminal is closed.")]
_Track = Annotated[str, typer.Option(help="Log to tensorboard, mlflow, trackio or wandb, too (comma-separated).")]


def _run_command() -> Callable[..., None]:
    """``run`` with an option for every field of RunConfig; made only when asked for, since that imports torch."""
    from randprune_lab.config import PRESETS, RunConfig, preset
    from randprune_lab.forms import idle
    from randprune_lab.tracking import parse_trackers

    def run(
        config: Path | None = None,
        preset_name: str | None = None,
        controls: bool = True,
        track: str = "",
        detach: bool = False,
        as_json: bool = False,
        **fields: Any,
    ) -> None:
        off = {name.removeprefix("no_") for name, value in fields.items() if name.startswith("no_") and value}
        given: dict[str, Any] = {
            name: name not in off and _value(name, value)
            for name, value in fields.items()
            if not name.startswith("no_") and (value is not None or name in off)
        }
        given = _read_file(config) | given
        fitting = preset(preset_name, task=given.get("task"), model=given.get("model"))
        trackers = parse_trackers(track)
        settings = RunConfig.model_validate({**fitting, **given})
        for sentence in idle(settings, given):
            say(sentence, error=True)
        if detach:
            _refuse_detached(track)
            _start(_with_control(settings) if controls else [settings], as_json=as_json)
        else:
            _run(settings, with_controls=controls, trackers=trackers, as_json=as_json)

    def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    parameters = [
        option("config", Annotated[Path | None, typer.Option(help="A TOML or JSON file of settings.")], None),
        option(
            "preset_name",
            Annotated[
                str | None,
                typer.Option("--preset", help=f"{', '.join(PRESETS)}; none: what fits the task", metavar="NAME"),
            ],
            None,
        ),
        option("track", _Track, ""),
        option(
            "controls", Annotated[bool, typer.Option(help="Run imp-matched, the control of equal budget, too.")], True
        ),
        option("detach", _Detach, False),
        option("as_json", Json, False),
    ]
    for name, field in RunConfig.model_fields.items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{field.description} [default: {'none' if default is None else default}]"
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            off = flag.replace("--", "--no-", 1)  # hidden: two columns of flags would leave no room for the help
            parameters += [
                option(name, Annotated[bool | None, typer.Option(flag, help=text)], None),
                option(f"no_{name}", Annotated[bool, typer.Option(off, hidden=True)], False),
            ]
            continue
        parameters.append(option(name, Annotated[str | None, typer.Option(flag, help=text, metavar="VALUE")], None))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _value(name: str, value: str | bool) -> str | bool | None:
    """An option's text; "none" is nothing."""
    from randprune_lab.config import RunConfig

    default = RunConfig.model_fields[name].default
    return value if value != "none" else default if default in ("", ()) else None


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        text = path.read_text()
        settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as TOML or JSON ({error}). Write name = value lines.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: holds a {type(settings).__name__}. Write an object of names and values.")
    return settings


def _run(config: RunConfig, *, with_controls: bool, trackers: tuple[str, ...], as_json: bool) -> None:
    from randprune_lab import store
    from randprune_lab.engine import prune
    from randprune_lab.methods import planned_epochs
    from randprune_lab.outcome import conclude

    if _is_beside(config):
        for settings in _with_control(config) if with_controls else [config]:
            _work_along(prune(settings))
        return
    parent = store.runs_folder()
    new = not parent.exists()
    first = store.new_folder(config)
    config = config.model_copy(update={"group": config.group or first.name})
    beside = _with_control(config)[1:] if with_controls else []
    folders = {}
    total = sum(sum(planned_epochs(each).values()) for each in (config, *beside))
    try:
        checked = prune(config)  # what is wrong shows here, before anything is made
    except BaseException:
        first.rmdir()
        if new:
            with contextlib.suppress(OSError):  # another run has begun there meanwhile
                parent.rmdir()
        raise
    with Display(total, quiet=as_json) as display:
        for settings in (config, *beside):
            stream = checked if settings is config else prune(settings)
            folder = first if settings is config else store.new_folder(settings, parent=first.parent)
            folders[settings.control or settings.method] = folder
            display.follow(folder, settings, _tracked(store.record(folder, stream), settings, folder, trackers))
            conclude(folder)  # whatever becomes of the next one
    _conclude(folders, as_json=as_json)


def _is_beside(config: RunConfig) -> bool:
    """Where torchrun or accelerate has started several processes for one run: this is not the one that writes."""
    from randprune_lab import ranks
    from randprune_lab.training import start_accelerator

    start_accelerator(config)
    return ranks.rank() > 0


def _work_along(stream: Iterator[Event | Checkpoint]) -> None:
    """Do a rank's part of a run: what there is to say and to keep, the first one says and keeps."""
    for _ in stream:
        pass


def _with_control(config: RunConfig) -> list[RunConfig]:
    """A run, and the control of equal budget that belongs to it."""
    from randprune_lab.config import controls

    return [config, controls(config)["imp-matched"]] if config.method == "randomized" else [config]


def _refuse_detached(track: str) -> None:
    if "LOCAL_RANK" in os.environ:
        raise ValueError("--detach: several processes were launched for one run, in the foreground. Leave it out.")
    if track:
        raise ValueError(f"--track {track}: is for runs in the foreground. Leave --detach or --track out.")


def _start(configs: list[RunConfig], *, as_json: bool) -> None:
    """Start runs as processes of their own, and say how to watch and stop them."""
    from randprune_lab import jobs
    from randprune_lab.checks import check_option
    from randprune_lab.tasks import TASKS

    check_option("task", configs[0].task, TASKS)  # the rest shows in its status
    _tell_started(jobs.start_all(configs), as_json=as_json)


def _tell_started(folders: list[Path], *, as_json: bool) -> None:
    from randprune_lab import jobs

    found = {folder: jobs.status(folder) for folder in folders}
    if as_json:
        print_json({"runs": [{"folder": str(folder)} | _status_row(status) for folder, status in found.items()]})
        return
    for folder, status in found.items():
        say(f"{folder}: {shown_state(status)}", whole=True)
    names = " ".join(shlex.quote(folder.name) for folder in folders)
    say("In the background, also when this terminal is closed. Watch: randprune runs")
    say(f"Stop: randprune stop {names}", whole=True)


def _status_row(status: Status) -> dict[str, Any]:
    return {"status": status.state, "message": status.message, "position": status.position}


def _tracked(events: Iterator[Event], config: RunConfig, folder: Path, trackers: tuple[str, ...]) -> Iterator[Event]:
    from randprune_lab.tracking import track

    return track(events, config, folder, trackers) if trackers else events


def resume(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run, or its folder.")],
    wave: Annotated[int | None, typer.Option(min=1, help="Candidates at once from now on; changes no result.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="lockstep, serial or ray from now on; changes no result.", metavar="VALUE")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Another cluster from now on; none: start one.", metavar="VALUE")
    ] = None,
    ray_gpus: Annotated[
        float | None, typer.Option(help="GPUs of each candidate on Ray from now on.", metavar="VALUE")
    ] = None,
    track: _Track = "",
    detach: _Detach = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed, from its last finished piece of work."""
    from randprune_lab import jobs, store
    from randprune_lab.engine import prune
    from randprune_lab.methods import planned_epochs
    from randprune_lab.tracking import parse_trackers

    trackers, folder = parse_trackers(track), _folder_of(name)
    ray_address = "" if ray_address == "none" else ray_address
    if detach:
        _refuse_detached(track)
        jobs.resume(folder, wave=wave, executor=executor, ray_address=ray_address, ray_gpus=ray_gpus)
        _tell_started([folder], as_json=as_json)
        return
    free = {"wave": wave, "executor": executor, "ray_address": ray_address, "ray_gpus": ray_gpus}
    config = jobs.going_on(store.read_config(folder), free)
    beside = _is_beside(config)
    stream = prune(config, resume=store.last_checkpoint(folder))
    if beside:
        _work_along(stream)
        return
    done = sum(epochs_of(event, config) for event in store.story(folder))
    with Display(sum(planned_epochs(config).values()), quiet=as_json, done=done) as display:
        display.follow(folder, config, _tracked(store.record(folder, stream), config, folder, trackers))
    _conclude({config.control or config.method: folder}, as_json=as_json)


def stop(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs, or their folders.")],
    as_json: Json = False,
) -> None:
    """Stop runs within a step, wherever they were started, or take them out of the queue; resume goes on with them."""
    from randprune_lab import jobs

    folders = {_folder_of(name): None for name in names}
    problems = []
    for folder in folders:  # all are asked before one is waited for, lest it make room for the next
        try:
            jobs.stop(folder, wait=False)
        except ValueError as error:
            problems.append(str(error))
    for folder in folders:
        if jobs.status(folder).is_live:
            with contextlib.suppress(ValueError):  # it has just ended; if not, its status says so
                jobs.stop(folder)
    found = {folder: jobs.status(folder) for folder in folders}
    if as_json:
        print_json({"runs": [{"folder": str(folder)} | _status_row(status) for folder, status in found.items()]})
    else:
        for folder, status in found.items():
            hint = f". Go on with: randprune resume {shlex.quote(str(folder))}" if status.can_resume else ""
            say(f"{folder}: {shown_state(status)}{hint}", whole=True)
    if problems:
        raise ValueError("; ".join(problems))


def _folder_of(name: str) -> Path:
    """A run by its folder, or by its name in the folder of runs."""
    from randprune_lab import store

    for folder in (Path(name), store.runs_folder() / name):
        if store.is_run(folder):
            return folder
    if (Path(name) / "study.json").is_file():
        raise ValueError(f"{name}: is a study, not a run. randprune study goes on with it, and writes its report anew.")
    raise ValueError(f"{name}: no such run, here or in {store.runs_folder()}. See randprune runs for those that are.")


def runs(as_json: Json = False) -> None:
    """The runs on disk: those of the folder that RANDPRUNE_RUNS names, else of ./runs."""
    from randprune_lab import jobs, store

    found = [(run, jobs.status(run.folder)) for run in store.runs()]
    if as_json:
        rows = [
            {"folder": str(run.folder), **_status_row(status), "sparsity": run.sparsity, "score": run.score}
            | {"stages_done": run.stages_done, "config": run.config.model_dump(mode="json") if run.config else None}
            for run, status in found
        ]
        print_json({"runs": rows})
    else:
        print_listing(f"{len(found)} run{'s' * (len(found) != 1)} in {store.runs_folder()}", found)
        if of_studies := store.run_folders(runs_of_studies := store.runs_folder() / "studies" / "runs"):
            say(f"{len(of_studies)} more of studies, which randprune study lists, in {runs_of_studies}", whole=True)


def report(folder: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Write report.html into a run's folder: one file that opens anywhere, without a network."""
    from randprune_lab.outcome import conclude, group_of

    say(f"report: {conclude(folder, beside=group_of(folder))}")


def pack(
    source: Annotated[
        Path, typer.Argument(help="A folder with a model, such as a run's model/, or a .safetensors file.")
    ],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
) -> None:
    """Write a sparse model small: a bit for every weight, and the values that are not zero."""
    from randprune_lab.packing import pack_model

    print_sizes(pack_model(source, target), target)


def unpack(
    source: Annotated[Path, typer.Argument(help="A folder that pack wrote.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; from_pretrained loads it.")],
) -> None:
    """Turn what pack wrote into an ordinary model again: equal tensors, zeros in place."""
    from randprune_lab.packing import unpack_model

    print_sizes(unpack_model(source, target), target)


def _conclude(folders: dict[str, Path], *, as_json: bool) -> None:
    """The reports, the table of the runs side by side, and where they lie."""
    from randprune_lab import store
    from randprune_lab.outcome import conclude, group_of

    tables = {name: store.stage_table(folder) for name, folder in folders.items()}
    for folder in folders.values():
        conclude(folder, beside=group_of(folder))
    if as_json:
        said = {name: {"folder": str(folders[name]), "stages": table} for name, table in tables.items()}
        print_json({"runs": said})
        return
    print_runs(store.read_config(next(iter(folders.values()))), tables, folders)


def explore(
    model: Annotated[str, typer.Argument(help="A folder or file of safetensors, a run's folder, or a Hub id.")],
    sparsity: Annotated[float | None, typer.Option(help="Share of each matrix that is removed, in [0, 1).")] = None,
    sampling_ratio: Annotated[
        float | None, typer.Option("--sampling-ratio", "--sr", help="sr: M = sr * C draws.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="C: pruned weights (decrease), kept ones (increase).")] = None,
    samples: Annotated[int | None, typer.Option(help="M itself; then sr does not count.")] = None,
    target_ir: Annotated[float | None, typer.Option(help="The ir of every tensor, through T; M is --samples.")] = None,
    power: Annotated[float | None, typer.Option("--power", "-T", help="T: selection weights are |w|**T.")] = None,
    reach: Annotated[float | None, typer.Option("--reach", "-r", help="r: draw from the r * keep largest.")] = None,
    scope: Annotated[str | None, typer.Option(help="layer: each tensor by itself; global: all as one vector.")] = None,
    ties: Annotated[str | None, typer.Option(help="Who is kept among equal counts: random or magnitude.")] = None,
    candidates: Annotated[int | None, typer.Option(help="With --html: masks to draw, with the plain one.")] = None,
    stage: Annotated[int | None, typer.Option(help="Of a run: the stage to look at.")] = None,
    moment: Annotated[str | None, typer.Option(help="Of a run: before or after that stage's mask.")] = None,
    tensor: Annotated[str | None, typer.Option(help="Only this one; with --html: the one to begin with.")] = None,
    draw: Annotated[int, typer.Option(min=0, max=1000, help="Draw this many masks of each matrix, too.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Of the masks drawn.")] = None,
    include: Annotated[str, typer.Option(help="Only tensors whose name this regular expression finds.")] = "",
    exclude: Annotated[str | None, typer.Option(help="No tensor whose name this one finds.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write panels 1 to 4 into this file, a page of its own.")] = None,
    as_json: Json = False,
) -> None:
    """Every weight matrix of a checkpoint or a run: its threshold, and the randomness that a mask would have."""
    from randprune_lab.checks import check_option
    from randprune_lab.explorer import Explorer
    from randprune_lab.schedules import RATIO_SCHEDULES
    from randprune_lab.sources import open_source
    from randprune_lab.state import ExploreState

    given = {
        "model": model,
        "tensor": tensor,
        "stage": stage,
        "moment": moment,
        "sparsity": sparsity,
        "scope": scope,
        "samples": samples,
        "sampling_ratio": sampling_ratio,
        "target_ir": target_ir,
        "power": power,
        "reach": reach,
        "ties": ties,
        "candidates": candidates,
        "seed": seed,
    }
    ratio = sampling_ratio is not None or schedule is not None
    if ratio + (samples is not None and target_ir is None) + (target_ir is not None) > 1:
        raise ValueError(
            "--sr or --schedule set the number of draws, and so do --samples and --target-ir: pass one kind of them."
        )
    if target_ir is not None and power is not None:
        raise ValueError("--target-ir sets the power itself: leave --power out.")
    if html is not None and (draw or as_json or include or exclude):
        raise ValueError("--html writes a page of every tensor: leave --draw, --json, --include and --exclude out.")
    explorer = Explorer(open_source(model))
    asked = {name: value for name, value in given.items() if value is not None}
    state = explorer.start(ExploreState.model_validate({"model": model, "stage": 1 if stage is None else stage}))
    if target_ir is not None:
        asked["randomness"] = "target_ir"
    elif samples is not None:
        asked["randomness"] = "fixed"
    elif ratio and (schedule is not None or state.randomness not in RATIO_SCHEDULES):
        asked["randomness"] = check_option("schedule", schedule or "decrease", RATIO_SCHEDULES)
    state = explorer.start(state.but(**asked))
    if html is not None:
        from randprune_lab.page import write_page

        say(f"page: {write_page(html, explorer, state)}")
        return
    if tensor is not None:
        include, exclude = f"^{re.escape(explorer.weights.info(state).name)}$", None
    rows = list(explorer.rows(state, include=include, exclude=exclude, draws=draw))
    if all(row.problem for row in rows):
        raise ValueError(str(rows[0].problem))
    if as_json:
        settings = state.model_dump(mode="json")
        print_json({"settings": settings, "tensors": [dataclasses.asdict(row) for row in rows]})
    else:
        now = (state.stage, state.moment)
        at = [known.label for known in explorer.source.moments if (known.stage, known.moment) == now]
        print_tensors(", ".join([model, *at]), state, rows, draws=draw)


def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the browser finds it.")] = 8501,
    runs: Annotated[Path | None, typer.Option(help="Folder of runs; none: $RANDPRUNE_RUNS, else ./runs.")] = None,
    models: Annotated[
        list[Path] | None, typer.Option(help="A folder of models or data that may be read; may be given again.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
) -> None:
    """The whole lab in the browser, on 127.0.0.1 only: explore, launch, watch, stop, resume, compare, learn."""
    from randprune_lab.places import Places
    from randprune_lab.serve import serve

    given = Places.of_environment()
    serve(port, runs=runs or given.runs, models=models or given.models, browser=browser)


def lab(
    folder: Annotated[Path, typer.Argument(help="Where your copy of the tutorials lies, or will.")] = Path("tutorials"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the browser finds it.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
) -> None:
    """The tutorials in JupyterLab, on 127.0.0.1 only: a copy of your own to work in."""
    from randprune_lab.serve import serve_lab

    serve_lab(folder, port, browser=browser)


def notebooks(
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the students' edition there.")] = None,
    solutions: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the teacher's edition there.")] = None,
    as_json: Json = False,
) -> None:
    """The tutorials and what one learns from them; or write them into a folder."""
    from randprune_lab.tutorials import tutorials, write_tutorials

    if to is None and solutions is None:
        listed = tutorials()
        if as_json:
            print_json({"notebooks": [dataclasses.asdict(tutorial) for tutorial in listed]})
        else:
            print_tutorials(listed)
        return
    if to is not None and solutions is not None and to.resolve() == solutions.resolve():
        raise ValueError(f"--to {to} --solutions {solutions}: two editions need two folders.")
    written = {}
    for folder, filled_in in ((to, False), (solutions, True)):
        if folder is not None:
            made, kept = write_tutorials(folder, solutions=filled_in)
            written[str(folder)] = {"written": [path.name for path in made], "kept": [path.name for path in kept]}
            there = f"; {len(kept)} were there already and stay as they are, whichever edition" if kept else ""
            if not as_json:
                say(f"{len(made)} notebooks written to {folder}{there}.")
    if as_json:
        print_json({"folders": written})
