"""The commands that measure: ``randprune bench`` and ``randprune methods``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from randprune_lab.terminal import Display, Json, print_bench, print_claims, print_contest, print_json, print_scaling


def bench(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repetitions; medians count.")] = 21,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of torch.")] = 2,
    training: Annotated[bool, typer.Option(help="Instead: what a training step costs, alone and in lockstep.")] = False,
    claims: Annotated[bool, typer.Option(help="Instead: does selection pay? Digits, all methods.")] = False,
    scaling: Annotated[bool, typer.Option(help="Instead: how masks scale, to 10^9 weights; candidates too.")] = False,
    chart: Annotated[Path | None, typer.Option(help="With --scaling: draw it into this .svg file.")] = None,
    seeds: Annotated[int, typer.Option(min=2, max=1000, help="With --claims: seeds 0 to this one, exclusive.")] = 10,
    processes: Annotated[int, typer.Option(min=1, max=1024, help="With --claims: runs at a time.")] = 2,
    as_json: Json = False,
) -> None:
    """What a randomized mask costs on this machine, beside a plain one and the paper's loop (about a minute)."""
    from randprune_lab.bench import CLAIM_CONFIG, claims_table, speed_table

    if scaling or chart is not None:
        _scaling(chart, device=device, repeats=repeats, asked=scaling, as_json=as_json)
        return
    if claims:
        with Display(0, quiet=as_json) as display:
            rows = claims_table(seeds=seeds, processes=processes, tell=display.runs_done)
        if as_json:
            print_json(
                {
                    "config": CLAIM_CONFIG.model_dump(mode="json"),
                    "seeds": seeds,
                    "claims": [dataclasses.asdict(row) for row in rows],
                }
            )
        else:
            print_claims(seeds, rows)
        return
    with Console(stderr=True).status("measuring"):
        if training:
            from randprune_lab.pace import training_table

            measured = training_table(device=device, threads=threads)
        else:
            measured = speed_table(device=device, repeats=repeats, threads=threads)
    if as_json:
        cells = [dataclasses.asdict(row) for row in measured]
        print_json({"device": device, "repeats": repeats, "threads": threads, "measured": cells})
    else:
        what = "training" if training else "768 x 3072, sparsity 0.9375, sr = 5e-5, T = 5, no reach"
        medians = "" if training else f", medians of {repeats}"
        print_bench(f"{what} ({device}, {threads} threads{medians})", measured)


def _scaling(chart: Path | None, *, device: str, repeats: int, asked: bool, as_json: bool) -> None:
    from randprune_lab.bench import bench_device
    from randprune_lab.charts import save_svg
    from randprune_lab.scaling import FIRST, NEXT, fit, scaling_table, study_times, throughput
    from randprune_lab.scaling_charts import scaling_chart

    if chart is not None and not chart.absolute().parent.is_dir():
        raise ValueError(f"--chart {chart}: its folder is not there. Make it first.")
    if not asked or (chart is not None and chart.suffix != ".svg"):
        raise ValueError(f"--chart {chart}: must be an .svg file, with --scaling. Pass --scaling --chart scaling.svg.")
    where = bench_device(device)
    with Display(0, quiet=as_json) as display:
        rows, left_out = scaling_table(repeats=repeats, device=where, tell=display.runs_done)
        weights = [row.weights for row in rows]
        fits = {FIRST: fit(weights, [row.first for row in rows]), NEXT: fit(weights, [row.following for row in rows])}
        workers = throughput(tell=display.runs_done)
        studies = study_times(tell=display.runs_done)
    if chart is not None:
        save_svg(scaling_chart(rows, workers, studies), chart)
    if as_json:
        print_json(
            {"device": device, "left_out": left_out}
            | {"sizes": [dataclasses.asdict(row) for row in rows]}
            | {"fits": {name: dataclasses.asdict(line) for name, line in fits.items()}}
            | {"throughput": [dataclasses.asdict(row) for row in workers]}
            | {"studies": [dataclasses.asdict(row) for row in studies]}
        )
    else:
        title = f"random masks, sparsity 0.9375, sr = 5e-5, T = 5, no reach ({device}, one thread, median of `repeats`)"
        print_scaling(title, rows, left_out, fits, workers, studies)


def methods(
    task: Annotated[str, typer.Option(help="digits (minutes), mnist (half an hour), cifar10 (a GPU).")] = "digits",
    model: Annotated[str, typer.Option(help="Instead of the task's own.")] = "",
    dataset: Annotated[str, typer.Option(help="Hub id, or a folder in the Hub's layout.")] = "",
    rows: Annotated[str, typer.Option(help="Only these, comma-separated: as the first column has them.")] = "",
    densities: Annotated[str, typer.Option(help="Shares of the weights that are kept.")] = "0.1,0.03,0.01",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds 0 to this one, exclusive.")] = 3,
    dense_epochs: Annotated[int | None, typer.Option(min=1, help="Before pruning; none: the task's own.")] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="After pruning; none: the task's own.")] = None,
    max_steps_per_epoch: Annotated[int | None, typer.Option(min=1, help="Of an epoch; none: all rows.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples a step; none: the task's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    processes: Annotated[int, typer.Option(min=1, max=1024, help="Runs at a time, each with one thread.")] = 2,
    as_json: Json = False,
) -> None:
    """Every method beside every other one under one budget of epochs: test accuracy by density, with intervals."""
    from randprune_lab.contest import ROWS, contest, contest_base

    given: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "dense_epochs": dense_epochs,
        "max_epochs": max_epochs,
        "max_steps_per_epoch": max_steps_per_epoch,
        "batch_size": batch_size,
        "device": device,
    }
    base = contest_base(task, **{name: value for name, value in given.items() if value})
    chosen = [row.strip() for row in rows.split(",")] if rows else list(ROWS)
    with Display(0, quiet=as_json) as display:
        entries = contest(
            base,
            rows=chosen,
            densities=_shares(densities),
            seeds=seeds,
            processes=processes,
            tell=display.runs_done,
        )
    if as_json:
        cells = [dataclasses.asdict(entry) for entry in entries]
        print_json({"config": base.model_dump(mode="json"), "seeds": seeds, "entries": cells})
    else:
        print_contest(base, seeds, entries)


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"densities = {text!r}: must be numbers between 0 and 1 with commas. Pass 0.1,0.03,0.01.")
    return shares
