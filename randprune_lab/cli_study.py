"""The command ``randprune study``: many runs, one answer."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from randprune_lab.terminal import Display, Json, print_json, print_table, say

if TYPE_CHECKING:
    from pathlib import Path

    from randprune_lab.studies import Study
    from randprune_lab.study_results import Results


def study(
    name: Annotated[str, typer.Argument(metavar="[STUDY]", help="A built-in study, or a TOML file. None: list.")] = "",
    small: Annotated[bool, typer.Option("--small", help="The form for two cores, some minutes long.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file: base.dataset=FOLDER, seeds=4."),
    ] = None,
    called: Annotated[str, typer.Option("--name", help="Name of the study's folder; none: the file's.")] = "",
    processes: Annotated[int, typer.Option(min=1, max=1024, help="Runs at a time on this machine.")] = 2,
    executor: Annotated[str, typer.Option(help="processes (this machine); ray.")] = "processes",
    ray_address: Annotated[str, typer.Option(help="Of a cluster: auto, HOST:PORT; none: start one here.")] = "",
    ray_gpus: Annotated[float, typer.Option(min=0, help="GPUs that a run asks for, may be a fraction.")] = 0.0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done and what it would cost; make nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, however many runs there are.")] = False,
    as_json: Json = False,
) -> None:
    """Many runs, one answer: seeds, fair controls, intervals, figures, a report. Stopped or killed: call it again."""
    from randprune_lab.checks import check_option
    from randprune_lab.studies import read_study
    from randprune_lab.study_report import conclude
    from randprune_lab.study_runs import read_state, refuse_another, run_study, studies_folder

    check_option("executor", executor, ("processes", "ray"))
    if executor != "ray" and (ray_address or ray_gpus):
        raise ValueError("--ray-address, --ray-gpus: are for --executor ray. Pass it, too.")
    if not name:
        _list(as_json=as_json)
        return
    changes = _changes(settings or []) | ({"name": called} if called else {})
    asked = read_study(name, small=small, changes=changes)
    refuse_another(studies_folder() / asked.name, asked)  # before the cost is timed, and anybody is asked
    if not _agreed(asked, plan=plan, yes=yes, processes=processes, as_json=as_json):
        return
    spread = None
    if executor == "ray":
        from randprune_lab.study_runs import on_cluster

        spread = on_cluster(ray_address, ray_gpus)
    try:
        with Display(0, quiet=as_json) as display:
            folder = run_study(asked, processes=processes, spread=spread, tell=display.runs_done)
        results = conclude(folder)
    except KeyboardInterrupt:
        say("stopped. What is finished stays: the same command goes on.", error=True)
        sys.exit(130)
    except OSError as error:
        its = studies_folder() / asked.name
        if isinstance(error, FileNotFoundError) and not its.is_dir():
            raise ValueError(f"{its}: was deleted or moved meanwhile. Start the study anew.") from error
        raise ValueError(
            f"{studies_folder()}: cannot be written ({error}). Make room, or set RANDPRUNE_RUNS to a folder that can "
            "be; what is finished stays, and the same command goes on."
        ) from error
    _tell(asked, folder, results, read_state(folder).failed, as_json=as_json)


def _tell(asked: Study, folder: Path, results: Results, failed: Mapping[str, str], *, as_json: bool) -> None:
    """What came of it, and what failed."""
    from randprune_lab.study_report import REPORT

    if failed:
        run, why = next(iter(failed.items()))
        say(
            f"{len(failed)} of {results.of} runs failed, and the results are without them; the first: {run}: {why} All "
            "of them stand in the report. The same command tries them again.",
            error=True,
            whole=True,
        )
    if as_json:
        summary = json.loads(results.summary.to_json(orient="records"))
        differences = json.loads(results.differences.to_json(orient="records"))
        told = {"failed": failed, "claims": results.claims, "summary": summary, "differences": differences}
        print_json({"study": asked.name, "folder": str(folder), "runs": results.finished, "of": results.of} | told)
        return
    print_results(asked, results)
    say(f"{results.finished} of {results.of} runs in {folder.parent / 'runs'}")
    say(f"report: {folder / REPORT} (results.csv, candidates.csv and parquet beside it)", whole=True)


def _changes(settings: list[str]) -> dict[str, Any]:
    """``base.dataset=FOLDER`` as {"base": {"dataset": "FOLDER"}}; values as TOML has them, else as text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        one = _setting(setting)
        if clash := _clash(changes, one):
            raise ValueError(f"--set {setting}: {clash} has been set to a value already. Leave one of them out.")
        changes = _together(changes, one)
    return changes


def _together(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both, which do not clash. "-" stays: ``studies.merged`` takes away what it stands for."""
    both = {name: _together(old[name], value) for name, value in new.items() if name in old}
    return {**old, **new, **both}


def _setting(text: str) -> dict[str, Any]:
    """One of them. As TOML it may have quoted keys: lines."blind (T = 0)".power = 1."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        path, equals, value = text.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {text}: must be KEY=VALUE. Pass for example --set base.dataset=FOLDER.")
    found: Any = value
    for table in reversed(path.split(".")):
        found = {table: found}
    return dict(found)


def _clash(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What is set already, or would be a table and a value."""
    for name, value in new.items():
        if name in old:
            tables = isinstance(value, dict) and isinstance(old[name], dict)
            if found := _clash(old[name], value) if tables else name:
                return found
    return ""


def _agreed(asked: Study, *, plan: bool, yes: bool, processes: int, as_json: bool) -> bool:
    """Say what is to be done; ask where it is much."""
    from randprune_lab.studies import expand
    from randprune_lab.study_cost import cost
    from randprune_lab.study_runs import ASKS_FROM, missing, studies_folder

    planned = expand(asked)
    left, different = missing(asked, studies_folder(), planned), len({one.id for one in planned})
    same = f" (for {asked.size:,} points, some of which share one)" if different < asked.size else ""
    text = f"{asked.name}: {different:,} runs{same}, {len(left):,} to make."
    ask = len(left) > ASKS_FROM and not yes
    if not (plan or ask):
        if not as_json:
            say(text)
        return True
    if not (plan and as_json):
        say(text, error=as_json)  # at once: to time them takes a while
    needs = cost(list(left.values()), processes)
    if plan and as_json:
        print_json({"study": asked.name, "points": asked.size, "runs": different, "left": len(left), **needs.to_json()})
        return False
    say(needs.sentence, error=as_json)
    if plan:
        return False
    if as_json or sys.stdin is None or not sys.stdin.isatty():
        raise ValueError(f"{len(left):,} runs are more than {ASKS_FROM}, and nobody is here to ask. Pass --yes.")
    typer.confirm("Begin?", abort=True)
    return True


def _list(*, as_json: bool) -> None:
    from randprune_lab.studies import built_in_studies, read_study
    from randprune_lab.study_runs import is_running, read_asked, read_state, studies_folder, study_folders

    def title(folder: Path) -> str:
        try:
            return read_asked(folder).title
        except ValueError:
            return "damaged: its study.json cannot be read"

    built_in = {name: read_study(name) for name in built_in_studies()}
    there = {folder: read_state(folder) for folder in study_folders()}
    if as_json:
        rows = [{"name": name, "title": study.title, "question": study.question} for name, study in built_in.items()]
        done = [{"folder": str(folder), "done": state.done, "of": state.of} for folder, state in there.items()]
        print_json({"built_in": rows, "studies": done})
        return
    print_table(
        "studies that come with the lab: randprune study NAME [--small]",
        ("name", "question"),
        ([name, study.question] for name, study in built_in.items()),
        words=("question",),
    )
    if there:
        shown = [
            (folder.name, title(folder), f"{state.done} of {state.of}", "runs" if is_running(folder) else "")
            for folder, state in there.items()
        ]
        print_table(f"studies in {studies_folder()}", ("name", "title", "runs", ""), shown, words=("title",))


def print_results(study: Study, results: Results) -> None:
    """The claims with their verdicts, and the means."""
    from randprune_lab.study_report import means_rows

    head, rows = means_rows(study, results)
    print_table(f"{study.name}: {study.title}", head, rows)
    if results.claims:
        rows = [[row["says"], row["verdict"]] for row in results.claims]
        print_table("what is claimed", ("claim", "verdict"), rows, words=("verdict",))
        for row in results.claims:
            say(f"{row['says'].rstrip('.')}: {row['verdict']}. {row['sentence']}", whole=True)
