"""commands.py - the command line: flags and files -> settings -> run -> pictures.  No logic of its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nonsingular.cli.app import app, typed
from nonsingular.cli.options import (
    GIVEN,
    HERE,
    SHOWN,
    Model,
    Output,
    Preflight,
    Quiet,
    Track,
    Where,
    computed,
    flags,
    folder_of,
    laid_over,
    over_file,
    print_settings,
    typed_settings,
)
from nonsingular.cli.screen import progress, say, show, show_shard, show_surface, tell
from nonsingular.errors import InvalidInput
from nonsingular.faults.chips import CampaignSettings
from nonsingular.settings import (
    CertifySettings,
    Computed,
    EvaluateSettings,
    GridSettings,
    PropertySettings,
    ReproduceSettings,
    TrainSettings,
    checked,
)

if TYPE_CHECKING:
    TrainFlags = EvaluateFlags = CertifyFlags = PropertyFlags = CampaignFlags = ReproduceFlags = ComputedFlags = Any
else:
    TrainFlags = flags(TrainSettings, names={"network.name": "network"})
    EvaluateFlags = flags(EvaluateSettings, without=["model"])
    CampaignFlags = flags(CampaignSettings, without=[*GridSettings.model_fields])
    CertifyFlags = flags(CertifySettings, without=["model"])
    PropertyFlags = flags(PropertySettings, without=["model", "weights"])
    ComputedFlags = flags(Computed)
    ReproduceFlags = flags(ReproduceSettings, names={"network.name": "network"})


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    seeds: int = 3,
    given: Annotated[ComputedFlags | None, GIVEN] = None,
    where: Annotated[Where, GIVEN] = HERE,
    quiet: Quiet = False,
) -> None:
    """Train eight models on the digits, attack them over the grid, draw Figure 1 and the report. Three to four minutes."""
    from nonsingular.runs.presets import reproduction

    chosen = computed({**typed_settings(given), "seeds": seeds}, None)
    settings = checked(ReproduceSettings, laid_over(chosen, reproduction("digits").model_dump()))
    show(_reproduce(settings, out, where, quiet), out)


@app.command
def train(
    *,
    given: Annotated[TrainFlags | None, GIVEN] = None,
    output: Annotated[Output, GIVEN] = SHOWN,
    threads: Annotated[
        int, Parameter(help="Threads of torch. One is fastest for small networks, and its bits are the same on any cores.")
    ] = 1,
) -> None:
    """Train one model. The numbers of a method default to those of the preset of the data set."""
    from nonsingular.runs.presets import WINNERS, training_defaults

    chosen = over_file(typed_settings(given), output.config)
    recipe = chosen.get("recipe", {})
    preset = training_defaults(chosen.get("data", "digits"), recipe.get("method"))
    if recipe.get("method") in [*WINNERS]:  # written into the settings as the method that it is
        chosen = {**chosen, "recipe": {name: value for name, value in recipe.items() if name != "method"}}
    settings = checked(TrainSettings, computed(laid_over(chosen, preset), output.config))
    if output.print_config:
        return print_settings(settings)
    out = output.out or Path("runs") / f"{Path(settings.data).stem}-{settings.recipe.method}-seed{settings.seed}"
    from nonsingular.network.calling import threads as use_threads
    from nonsingular.runs.train import train_run

    with use_threads(threads), progress(output.silent, {"epochs": settings.recipe.epochs}) as report:
        summary = train_run(settings, out, lambda epoch: report("epochs", 1))
    say(
        f"{settings.recipe.method} on {settings.data}: validation accuracy {100 * summary['val_accuracy']:.1f} %, "
        f"{summary['seconds']:.0f} s; model in {out / 'model.safetensors'}\nnext: nonsingular evaluate {shlex.quote(str(out))}"
    )
    if output.json:
        print(json.dumps({"out": str(out), **summary}))


@app.command
def evaluate(
    model: Model = None,
    /,
    *,
    given: Annotated[EvaluateFlags | None, GIVEN] = None,
    of_chips: Annotated[CampaignFlags | None, GIVEN] = None,
    preflight: Preflight = False,
    output: Annotated[Output, GIVEN] = SHOWN,
    track: Track = None,
    where: Annotated[Where, GIVEN] = HERE,
) -> None:
    """Attack one model over a grid of (eps_x, eps_w): accuracy surface and AUC.

    With --fault: simulate chips that store the weights instead, over error rates and input radii.
    """
    chosen = over_file(_of(model, given) | typed_settings(of_chips), output.config)
    if typed_settings(of_chips) or "fault" in chosen:
        return _chips(checked(CampaignSettings, computed(chosen, output.config)), preflight, output, track, where)
    doubles = chosen.get("certify") is not None
    _one_surface(checked(EvaluateSettings, computed(chosen, output.config, doubles=doubles)), preflight, output, track, where)


@app.command
def certify(
    model: Model = None,
    /,
    *,
    given: Annotated[CertifyFlags | None, GIVEN] = None,
    of_files: Annotated[PropertyFlags | None, GIVEN] = None,
    preflight: Preflight = False,
    output: Annotated[Output, GIVEN] = SHOWN,
    track: Track = None,
    where: Annotated[Where, GIVEN] = HERE,
    method: Annotated[str | None, Parameter(show=False)] = None,
) -> None:
    """Certify one model over a grid of (eps_x, eps_w): predictions that no input and no weights within the radii change.

    With --vnnlib: decide the properties of .vnnlib files instead, each verified, falsified with a counterexample, or timeout.
    """
    chosen = over_file(_of(model, given) | typed_settings(of_files), output.config)
    if typed_settings(of_files) or "vnnlib" in chosen:
        return _properties(checked(PropertySettings, chosen), preflight, output, track, where)
    if method is not None:
        say("warning: --method is called --bound now")
        chosen.setdefault("bound", method)
    _one_surface(checked(CertifySettings, computed(chosen, output.config, doubles=True)), preflight, output, track, where)


@app.command
def reproduce(
    *,
    given: Annotated[ReproduceFlags | None, GIVEN] = None,
    output: Annotated[Output, GIVEN] = SHOWN,
    track: Track = None,
    where: Annotated[Where, GIVEN] = HERE,
) -> None:
    """The whole paper: seven models, every seed, their surfaces under its attack, Figure 1, and a verdict on each claim."""
    from nonsingular.runs.presets import reproduction

    chosen = over_file(typed_settings(given), output.config)
    preset = reproduction(chosen.get("data", "mnist")).model_dump()
    named = chosen.get("recipes")  # a file that names recipes runs these alone, each laid over the preset's of that name
    if isinstance(named, Mapping):
        preset["recipes"] = {name: preset["recipes"][name] for name in named if name in preset["recipes"]}
    settings = checked(ReproduceSettings, laid_over(computed(chosen, output.config), preset))
    if output.print_config:
        return print_settings(settings)
    out, tracked = output.out or Path("runs") / f"reproduce-{settings.data}", _tracker(track)
    results = _reproduce(settings, out, where, output.silent)
    tracked(results, out)
    if output.json:
        claims = results.get("claims", {})
        print(json.dumps({"models": {n: m["auc"] for n, m in results["models"].items()}, "claims": claims, "out": str(out)}))
    else:
        show(results, out)


# --- running and showing --------------------------------------------------------------------------------------------------


def _of(model: str | None, given: Any) -> dict[str, Any]:
    return typed_settings(given) | ({} if model is None else {"model": model})


def _one_surface(
    settings: EvaluateSettings | CertifySettings, preflight: bool, output: Output, track: str | None, where: Where
) -> None:  # fmt: skip
    """Runs, writes the report, and shows the surface of the one model; or shows the estimate of the run."""
    if output.print_config:
        return print_settings(settings)
    workplace = where.workplace()
    if preflight:
        return _preflight(settings, workplace.workers, output)
    if track and settings.shard is not None:
        raise InvalidInput("--track sends results, and a shard has none; leave it out with --shard")
    tracked = _tracker(track)
    from nonsingular.report import write
    from nonsingular.runs.evaluate import Told, evaluate_run
    from nonsingular.runs.manifest import seal

    command = "evaluate" if isinstance(settings, EvaluateSettings) else "certify"
    out = output.out or folder_of(command, settings)
    with progress(output.silent, {}) as report:
        told = Told(report, None if output.silent else lambda found: say(str(found)))
        if settings.shard is not None:
            from nonsingular.runs.shards import shard_run

            shard_run(settings, out, workplace, told, typed.get())
            return show_shard(settings.shard, out, json=output.json)
        results = evaluate_run(settings, out, workplace, told, typed.get())
    page = write(results, out)["report.html"]
    seal(out)
    tracked(results, out)
    show_surface(results, page, out, json=output.json)


def _no_grid(flag: str, preflight: bool, track: str | None) -> None:
    """Raises InvalidInput for flags that say nothing beside `flag`, which asks for no grid of (eps_x, eps_w)."""
    if preflight or track:
        raise InvalidInput(f"{'--preflight' if preflight else '--track'} is for grids of radii; leave it out with {flag}")


def _properties(settings: PropertySettings, preflight: bool, output: Output, track: str | None, where: Where) -> None:
    """Decides, and shows one line a property."""
    _no_grid("--vnnlib", preflight, track)
    if output.print_config:
        return print_settings(settings)
    from nonsingular.runs.properties import properties_run

    out = output.out or folder_of("properties", settings)
    with progress(output.silent, {}) as report:
        results = properties_run(settings, out, where.workplace(), report, typed.get())
    if output.json:
        return print(json.dumps({"verdicts": results["verdicts"], "out": str(out)}))
    for v in results["verdicts"]:
        found = f", {out / v['counterexample']}" if "counterexample" in v else ""
        tell(f"{v['status']:9} {v['property']} ({v['seconds']:.1f} s, {v['parts']} parts{found})")
    statuses = [v["status"] for v in results["verdicts"]]
    tell(", ".join(f"{statuses.count(s)} {s}" for s in ("verified", "falsified", "timeout")))
    say(f"records: {out}")


def _chips(settings: CampaignSettings, preflight: bool, output: Output, track: str | None, where: Where) -> None:
    """Simulates chips, and shows one line for each rate and radius."""
    _no_grid("--fault", preflight, track)
    if output.print_config:
        return print_settings(settings)
    from nonsingular.results.campaign import Campaign
    from nonsingular.results.protection import Protection
    from nonsingular.runs.campaigns import PAGE, campaign_run

    out = output.out or folder_of("chips", settings)
    with progress(output.silent, {"chips": settings.chips}) as report:
        results = campaign_run(settings, out, where.workplace(), report, typed.get())
    if output.json:
        return print(json.dumps(results["campaign"]))
    advice = Protection.from_dict(results["protection"]).lines() if "protection" in results else []
    tell("\n".join([*Campaign.from_dict(results["campaign"]).lines(settings.required), *advice]))
    say(f"report: {out / PAGE}\nrecords: {out}")


def _preflight(settings: EvaluateSettings | CertifySettings, workers: int, output: Output) -> None:
    """Shows the estimate of a run: a first one at once in one line, then the best one."""
    from nonsingular.runs.evaluate import preflight_run

    found = preflight_run(
        settings, workers, lambda first: None if output.silent else say(f"at first sight: {first.how_long()} ...")
    )
    if output.json:
        return print(json.dumps(found.to_dict()))
    print(f"{found}\ntensors that move, at the largest eps_w:\n{found.details()}")


def _tracker(name: str | None) -> Callable[[Mapping[str, Any], Path], None]:
    from nonsingular.runs.trackers import tracker

    return tracker(name) if name else lambda results, out: None


def _reproduce(settings: ReproduceSettings, out: Path, where: Where, quiet: bool) -> dict[str, Any]:
    from nonsingular.report import write
    from nonsingular.runs.manifest import seal
    from nonsingular.runs.reproduce import reproduce

    models = len(settings.recipes) * settings.seeds
    cells = models * len(settings.eps_x) * len(settings.eps_w)
    if not quiet:
        say(f"{settings.data}: {models} networks to train, {cells} cells of the grid to attack, into {out}")
    with progress(quiet, {"models": models, "cells": cells}) as report:
        results = reproduce(settings, out, where.workplace(), report, typed.get())
    write(results, out)
    seal(out)
    return results
