"""commands.py - the command line: flags and files -> settings -> run -> pictures.  No logic of its own."""

from __future__ import annotations

import json as json_
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from nonsingular.cli.app import app, typed
from nonsingular.cli.options import (
    PRESET,
    Address,
    Classes,
    Config,
    Data,
    DataDir,
    Domain,
    Engine,
    EpsW,
    EpsX,
    Indices,
    Json,
    Limit,
    Model,
    Moves,
    Out,
    Preflight,
    PrintConfig,
    Quiet,
    Relative,
    Split,
    Track,
    Weights,
    Workers,
    folder_of,
    given_flags,
    laid_over,
    merged,
    print_settings,
    workplace,
)
from nonsingular.cli.screen import print_table, progress, say, show, tell


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    seeds: int = 3,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Train the seven models on the digits, attack them over the grid, draw Figure 1 and the report. About two minutes."""
    from nonsingular.runs.presets import reproduction
    from nonsingular.settings import ReproduceSettings, checked

    settings = checked(ReproduceSettings, {**reproduction("digits").model_dump(), "seeds": seeds})
    results = _reproduce(settings, out, workplace(workers, engine, address), quiet)
    show(results, out)


@app.command
def train(
    *,
    data: Annotated[str | None, Parameter(help="As of 'evaluate'. Default: digits.")] = None,
    classes: Classes = None,
    method: Annotated[
        str | None, Parameter(help="standard, weight-perturb, at, at-beta, jiwp or joint. Default: standard.")
    ] = None,
    eps_x: Annotated[float | None, Parameter(help=f"Training radius of the inputs, in the data's units. {PRESET}, 0.")] = None,
    eps_w: Annotated[float | None, Parameter(help=f"Training radius of the weights. {PRESET}, 0.")] = None,
    alpha: Annotated[float | None, Parameter(help=f"Weight of tau in the loss (4). {PRESET}, 0.")] = None,
    beta: Annotated[float | None, Parameter(help=f"Weight of zeta in the loss (4). {PRESET}, 0.")] = None,
    epochs: Annotated[int | None, Parameter(help=f"Passes over the training data. {PRESET}, 12.")] = None,
    lr: Annotated[float | None, Parameter(help=f"Learning rate of Adam. {PRESET}, 0.001.")] = None,
    batch_size: Annotated[int | None, Parameter(help=f"Examples of a step. {PRESET}, 128.")] = None,
    network: Annotated[str | None, Parameter(help="mlp, conv or resnet. Default: mlp.")] = None,
    hidden: Annotated[str | None, Parameter(help=f"Widths, e.g. 64,32. {PRESET}, 128,64,32.")] = None,
    bias: Annotated[bool | None, Parameter(help="Layers with biases. Default: without.")] = None,
    seed: Annotated[int | None, Parameter(help="Of the weights and of the order of the data. Default: 0.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    out: Out = None,
    threads: Annotated[
        int, Parameter(help="Threads of torch. One is fastest for small networks, and then the bits do not depend on the cores.")
    ] = 1,
    json: Json = False,
    quiet: Quiet = False,
    print_config: PrintConfig = False,
) -> None:
    """Train one model. The numbers of a method default to those of the preset of the data set."""
    from nonsingular.runs.presets import training_defaults
    from nonsingular.settings import TrainSettings, read_config

    file = read_config(config) if config else {}
    recipe = given_flags(
        method=method, eps_x=eps_x, eps_w=eps_w, alpha=alpha, beta=beta, epochs=epochs, lr=lr, batch_size=batch_size
    )
    net = given_flags(name=network, hidden=hidden.split(",") if hidden is not None else None, bias=bias)
    top = given_flags(data=data, data_dir=data_dir, classes=classes, seed=seed)
    chosen = laid_over({"recipe": recipe, "network": net, **top}, file)
    settings = merged(
        TrainSettings, training_defaults(chosen.get("data", "digits"), chosen.get("recipe", {}).get("method")), chosen
    )
    if print_config:
        return print_settings(settings)
    out = out or Path("runs") / f"{Path(settings.data).stem}-{settings.recipe.method}-seed{settings.seed}"
    from nonsingular.network.calling import threads as use_threads
    from nonsingular.runs.train import train_run

    with use_threads(threads), progress(quiet or json, {"epochs": settings.recipe.epochs}) as report:
        summary = train_run(settings, out, lambda epoch: report("epochs", 1))
    say(
        f"{settings.recipe.method} on {settings.data}: validation accuracy {100 * summary['val_accuracy']:.1f} %, "
        f"{summary['seconds']:.0f} s; model in {out / 'model.safetensors'}\nnext: nonsingular evaluate {shlex.quote(str(out))}"
    )
    if json:
        print(json_.dumps({"out": str(out), **summary}))


@app.command
def evaluate(
    model: Model = None,
    /,
    *,
    weights: Weights = None,
    data: Data = None,
    classes: Classes = None,
    split: Split = None,
    indices: Indices = None,
    limit: Limit = None,
    eps_x: EpsX = None,
    eps_w: EpsW = None,
    scope: Annotated[str | None, Parameter(help="Who shares W': sample (default), batch or dataset.")] = None,
    attack: Annotated[
        str | None,
        Parameter(help="strongest (default), paper, apgd, ... ('nonsingular list attacks'); a+b is the worst of both."),
    ] = None,
    domain: Domain = None,
    moves: Moves = None,
    relative: Relative = None,
    batch_size: Annotated[int | None, Parameter(help="Examples that share W' in scope batch. Default: 128.")] = None,
    certify: Annotated[
        str | None,
        Parameter(help="Certify the grid too, by this bound: crown, best, ... ('nonsingular list bounds'). Default: none."),
    ] = None,
    expectation: Annotated[
        int | None,
        Parameter(help="For a random network: average the logits of so many forward passes. Default: a random one is refused."),
    ] = None,
    masking: Annotated[
        bool | None, Parameter(help="Also look for signs of masked gradients, where about half is left. Default: no.")
    ] = None,
    preflight: Preflight = False,
    data_dir: DataDir = None,
    config: Config = None,
    out: Out = None,
    track: Track = None,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    print_config: PrintConfig = False,
) -> None:
    """Attack one model over a grid of (eps_x, eps_w): accuracy surface and AUC."""
    from nonsingular.settings import EvaluateSettings, read_config

    given = given_flags(
        model=model, weights=weights, data=data, data_dir=data_dir, classes=classes, split=split, indices=indices,
        limit=limit,
        eps_x=eps_x, eps_w=eps_w,
        scope=scope, attack=attack, domain=domain, moves=moves,
        relative=relative, batch_size=batch_size, certify=certify, masking=masking, expectation=expectation,
    )  # fmt: skip
    settings = merged(EvaluateSettings, read_config(config) if config else {}, given)
    if print_config:
        return print_settings(settings)
    from nonsingular.runs.evaluate import evaluate_run

    where = workplace(workers, engine, address)
    if preflight:
        return _preflight(settings, where["workers"], json, quiet)
    run = evaluate_run if quiet or json else partial(evaluate_run, announce=lambda found: say(str(found)))
    _one_surface(run, settings, out or folder_of("evaluate", settings), where, json, quiet, track)


@app.command
def certify(
    model: Model = None,
    /,
    *,
    weights: Weights = None,
    data: Data = None,
    classes: Classes = None,
    split: Split = None,
    indices: Indices = None,
    limit: Limit = None,
    eps_x: EpsX = None,
    eps_w: EpsW = None,
    method: Annotated[
        str | None, Parameter(help="A sound bound: crown (default), best, ... ('nonsingular list bounds').")
    ] = None,
    accuracy: Annotated[
        str | None,
        Parameter(
            help="Shares of the examples, e.g. 0.9,0.5: the largest certified eps_w for each, at every eps_x. Default: none."
        ),
    ] = None,
    domain: Domain = None,
    moves: Moves = None,
    relative: Relative = None,
    preflight: Preflight = False,
    data_dir: DataDir = None,
    config: Config = None,
    out: Out = None,
    track: Track = None,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    print_config: PrintConfig = False,
) -> None:
    """Certify one model over a grid of (eps_x, eps_w): what no input and no weights within the radii can change."""
    from nonsingular.settings import CertifySettings, read_config

    given = given_flags(
        model=model, weights=weights, data=data, data_dir=data_dir, classes=classes, split=split, indices=indices,
        limit=limit,
        eps_x=eps_x, eps_w=eps_w,
        method=method, accuracy=None if accuracy is None else accuracy.split(","),
        domain=domain, moves=moves, relative=relative,
    )  # fmt: skip
    settings = merged(CertifySettings, read_config(config) if config else {}, given)
    if print_config:
        return print_settings(settings)
    from nonsingular.runs.evaluate import certify_run

    where = workplace(workers, engine, address)
    if preflight:
        return _preflight(settings, where["workers"], json, quiet)
    run = certify_run if quiet or json else partial(certify_run, announce=lambda found: say(str(found)))
    _one_surface(run, settings, out or folder_of("certify", settings), where, json, quiet, track)


def _preflight(settings: Any, workers: int, json: bool, quiet: bool) -> None:
    """Says what a run is going to be: at once in one line, and then as well as it can be known."""
    from nonsingular.runs.evaluate import preflight_run

    found = preflight_run(
        settings, workers, lambda first: None if quiet or json else say(f"at first sight: {first.how_long()} ...")
    )
    if json:
        return print(json_.dumps(found.to_dict()))
    print(f"{found}\ntensors that move, at the largest eps_w:\n{found.details()}")


def _one_surface(
    run: Any, settings: Any, out: Path, where: Mapping[str, Any], json: bool, quiet: bool, track: str | None
) -> None:  # fmt: skip
    """Runs, writes the report, and shows the surface of the one model."""
    tracked = _tracker(track)
    from nonsingular.report import doubts, write
    from nonsingular.report.table import fronts_table, masking_lines, surface_table
    from nonsingular.results.surface import Surface
    from nonsingular.runs.manifest import seal

    with progress(quiet or json, {}) as report:
        results = run(settings, out, report=report, command=typed.get(), **where)
    files = write(results, out)
    seal(out)
    tracked(results, out)
    (found,) = results["models"].values()
    if json:
        print(json_.dumps(found["surfaces"][0] | {k: found[k] for k in ("fronts", "masking") if k in found}))
        return
    surface = Surface.from_dict(found["surfaces"][0])
    for shown in (surface, surface.certified):
        if shown:
            print_table(surface_table(shown))
    if "fronts" in found:
        print_table(fronts_table(found["fronts"]))
    for line in [*doubts(results), *masking_lines(found)]:
        tell(line)
    say(f"report: {files['report.html']}\nrecords: {out}")


def _tracker(name: str | None) -> Callable[[Mapping[str, Any], Path], None]:
    from nonsingular.runs.trackers import tracker

    return tracker(name) if name else lambda results, out: None


@app.command
def reproduce(
    *,
    data: Annotated[str | None, Parameter(help="mnist (default), fashion-mnist or digits.")] = None,
    seeds: Annotated[int | None, Parameter(help="Networks of each model. Default: 3.")] = None,
    limit: Annotated[str | None, Parameter(help="Test examples, a seeded subset (default 1000); 'none' for all.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    out: Out = None,
    track: Track = None,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    print_config: PrintConfig = False,
) -> None:
    """The whole paper: seven models, every seed, their surfaces under its attack, Figure 1, and a verdict on each claim."""
    from nonsingular.runs.presets import reproduction
    from nonsingular.settings import ReproduceSettings, checked, read_config

    given = {**(read_config(config) if config else {}), **given_flags(data=data, seeds=seeds, limit=limit, data_dir=data_dir)}
    preset = reproduction(given.get("data", "mnist")).model_dump()
    named = given.get("recipes")  # a file that names recipes runs these alone, each laid over the preset's of that name
    if isinstance(named, Mapping):
        preset["recipes"] = {name: preset["recipes"][name] for name in named if name in preset["recipes"]}
    settings = checked(ReproduceSettings, laid_over(given, preset))
    if print_config:
        return print_settings(settings)
    out, tracked = out or Path("runs") / f"reproduce-{settings.data}", _tracker(track)
    results = _reproduce(settings, out, workplace(workers, engine, address), quiet or json)
    tracked(results, out)
    if json:
        claims = results.get("claims", {})
        print(json_.dumps({"models": {n: m["auc"] for n, m in results["models"].items()}, "claims": claims, "out": str(out)}))
    else:
        show(results, out)


# --- running and showing --------------------------------------------------------------------------------------------------


def _reproduce(settings: Any, out: Path, where: Mapping[str, Any], quiet: bool) -> dict[str, Any]:
    from nonsingular.report import write
    from nonsingular.runs.manifest import seal
    from nonsingular.runs.reproduce import reproduce

    models = len(settings.recipes) * settings.seeds
    cells = models * len(settings.eps_x) * len(settings.eps_w)
    if not quiet:
        say(f"{settings.data}: {models} networks to train, {cells} cells of the grid to attack, into {out}")
    with progress(quiet, {"models": models, "cells": cells}) as report:
        results = reproduce(settings, out, report=report, command=typed.get(), **where)
    write(results, out)
    seal(out)
    return results
