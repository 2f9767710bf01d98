"""cli.py - the command line: flags and files -> settings -> run -> pictures.  No logic of its own."""

from __future__ import annotations

import errno
import json as json_
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import cyclopts
from cyclopts import App, Parameter

from nonsingular import __version__
from nonsingular.errors import GateMissed, InvalidInput, SoundnessError, Unconfirmed
from nonsingular.plain import legible

if TYPE_CHECKING:
    from nonsingular.config import Settings

app = App(
    name="nonsingular", version=__version__, suppress_keyboard_interrupt=False, result_action="return_value",
    help="Robustness of neural networks to their inputs and their weights, together.\n\n"
    "Exit codes: 0 done; 1 a gate was missed, a worker process died, an attack beat a certificate, or a run is not confirmed; "
    "2 something given cannot be used; "
    "130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (what is finished is kept: run the same command again).",
)  # fmt: skip

Config = Annotated[Path | None, Parameter(help="YAML file of settings; flags win over it. Default: none.")]
Model = Annotated[
    str | None,
    Parameter(
        help="Output folder of 'train'; file.py:function or package.module:function that returns an nn.Module; an .onnx or .pt2 "
        "(torch.export) file, also hf:owner/name/file; torchvision:name or timm:name. Default: that of --config; "
        "needed in one of the two."
    ),
]
Weights = Annotated[
    Path | None,
    Parameter(
        help="For the function or name: safetensors, or a torch state dict (.pt, .pth); or hf:owner/name[/file]. "
        "Never unpickled. Default: those that the function or file comes with."
    ),
]
Data = Annotated[
    str | None,
    Parameter(
        help="digits, mnist, fashion-mnist, cifar10; an .npz, .parquet, .arrow or .csv file; a folder of images (one sub-folder "
        "a class), IDX or parquet files; or hf:owner/name[:config]. Default: what the model was trained on."
    ),
]
Classes = Annotated[
    str | None,
    Parameter(
        help="Names of the classes in the order of the model's outputs: no,yes. Default: the order of the data set, which "
        "--preflight shows (text sorted; numbers as numbers)."
    ),
]
Indices = Annotated[
    Path | None,
    Parameter(
        help="File of the rows of the split that count, from 0: .npy, .txt or .json. --limit draws from these. Default: all rows."
    ),
]
Split = Annotated[str | None, Parameter(help="test (default) or val.")]
Limit = Annotated[str | None, Parameter(help="Examples, a seeded subset; 'none' for all (default).")]
EpsX = Annotated[
    str | None,
    Parameter(
        help="Input radii: low:high:points or a,b,c, in units of the data; or column=radius,column=radius of a table (the axis "
        "is then their fraction, other columns are fixed; '*=0.1,sex=0' moves all but sex). Default: the grid of the data set; "
        "for other data, 6 points to a fifth of the spread of the inputs."
    ),
]
EpsW = Annotated[
    str | None,
    Parameter(
        help="Weight radii likewise, or tensor=radius,tensor=radius (the axis is then their fraction). Default: the "
        "grid of the data "
        "set; for other data, and with --relative, 6 points to 0.02 of the largest |weight| of each tensor."
    ),
]
Domain = Annotated[
    str | None,
    Parameter(
        help="Range of the inputs, in their units: e.g. 0,1 or --domain=-1,1, or none. Default: that of the data set (0,1 for "
        "images and .npz files that name no other; none for tables)."
    ),
]
Moves = Annotated[str | None, Parameter(help="weights (default) or all: biases and scales too.")]
Relative = Annotated[
    bool | None,
    Parameter(
        help="Weight radii are multiples of the largest |weight| of each tensor. Default: no, unless --eps-w is chosen for you."
    ),
]
Preflight = Annotated[
    bool,
    Parameter(negative="", help="Say within 30 s how long it will take, what moves and what can be certified, and stop."),
]
DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder with the data: torchvision-layout IDX files or Hugging Face parquet. Default: the cache, else a "
        "download into it."
    ),
]
Out = Annotated[
    Path | None,
    Parameter(
        help="Run directory. The same settings go on where they ended; other settings are refused. Default: a folder "
        "in runs/ named after them."
    ),
]
Workers = Annotated[int | None, Parameter(help="Processes, one thread each. Default: the number of cores.")]
Engine = Annotated[str, Parameter(help="Where the work is done: local, or ray (extra 'ray'). The results are the same.")]
Address = Annotated[
    str | None,
    Parameter(help="Ray cluster to join: host:port or auto. Its CPUs then count, not --workers. Default: a Ray of its own."),
]
Track = Annotated[
    str | None, Parameter(help="Also hand the results to tensorboard or mlflow, where it is installed. Default: to none.")
]
PRESET = "Default: that of the method's preset on the data; without one"
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, Parameter(negative="", help="No progress on stderr.")]
PrintConfig = Annotated[bool, Parameter(negative="", help="Print the effective settings as YAML and stop.")]


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
    from nonsingular.config import ReproduceSettings, checked
    from nonsingular.presets import reproduction

    settings = checked(ReproduceSettings, {**reproduction("digits").model_dump(), "seeds": seeds})
    results = _reproduce(settings, out, _where(workers, engine, address), quiet)
    _show(results, out)


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
    from nonsingular.config import TrainSettings, read_config
    from nonsingular.presets import training_defaults

    file = read_config(config) if config else {}
    recipe = _given(method=method, eps_x=eps_x, eps_w=eps_w, alpha=alpha, beta=beta, epochs=epochs, lr=lr, batch_size=batch_size)
    net = _given(name=network, hidden=hidden.split(",") if hidden is not None else None, bias=bias)
    top = _given(data=data, data_dir=data_dir, classes=classes, seed=seed)
    chosen = _under({"recipe": recipe, "network": net, **top}, file)
    settings = _merge(
        TrainSettings, training_defaults(chosen.get("data", "digits"), chosen.get("recipe", {}).get("method")), chosen
    )
    if print_config:
        return _print_config(settings)
    out = out or Path("runs") / f"{Path(settings.data).stem}-{settings.recipe.method}-seed{settings.seed}"
    from nonsingular.experiment import train_run
    from nonsingular.graph import threads as use_threads

    with use_threads(threads), _progress(quiet or json, {"epochs": settings.recipe.epochs}) as report:
        summary = train_run(settings, out, lambda epoch: report("epochs", 1))
    _say(
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
    from nonsingular.config import EvaluateSettings, read_config

    given = _given(
        model=model, weights=weights, data=data, data_dir=data_dir, classes=classes, split=split, indices=indices,
        limit=limit,
        eps_x=eps_x, eps_w=eps_w,
        scope=scope, attack=attack, domain=domain, moves=moves,
        relative=relative, batch_size=batch_size, certify=certify, masking=masking, expectation=expectation,
    )  # fmt: skip
    settings = _merge(EvaluateSettings, read_config(config) if config else {}, given)
    if print_config:
        return _print_config(settings)
    from nonsingular.experiment import evaluate_run

    where = _where(workers, engine, address)
    if preflight:
        return _preflight(settings, where["workers"], json, quiet)
    run = evaluate_run if quiet or json else partial(evaluate_run, announce=lambda found: _say(str(found)))
    _one_surface(run, settings, out or _folder("evaluate", settings), where, json, quiet, track)


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
    from nonsingular.config import CertifySettings, read_config

    given = _given(
        model=model, weights=weights, data=data, data_dir=data_dir, classes=classes, split=split, indices=indices,
        limit=limit,
        eps_x=eps_x, eps_w=eps_w,
        method=method, accuracy=None if accuracy is None else accuracy.split(","),
        domain=domain, moves=moves, relative=relative,
    )  # fmt: skip
    settings = _merge(CertifySettings, read_config(config) if config else {}, given)
    if print_config:
        return _print_config(settings)
    from nonsingular.experiment import certify_run

    where = _where(workers, engine, address)
    if preflight:
        return _preflight(settings, where["workers"], json, quiet)
    run = certify_run if quiet or json else partial(certify_run, announce=lambda found: _say(str(found)))
    _one_surface(run, settings, out or _folder("certify", settings), where, json, quiet, track)


def _preflight(settings: Any, workers: int, json: bool, quiet: bool) -> None:
    """Says what a run is going to be: at once in one line, and then as well as it can be known."""
    from nonsingular.experiment import preflight_run

    found = preflight_run(
        settings, workers, lambda first: None if quiet or json else _say(f"at first sight: {first.how_long()} ...")
    )
    if json:
        return print(json_.dumps(found.to_dict()))
    print(f"{found}\ntensors that move, at the largest eps_w:\n{found.details()}")


def _one_surface(
    run: Any, settings: Any, out: Path, where: Mapping[str, Any], json: bool, quiet: bool, track: str | None
) -> None:  # fmt: skip
    """Runs, writes the report, and shows the surface of the one model."""
    tracked = _tracker(track)
    from nonsingular.manifest import seal
    from nonsingular.records import Surface
    from nonsingular.report import doubts, fronts_table, masking_lines, surface_table, write

    with _progress(quiet or json, {}) as report:
        results = run(settings, out, report=report, command=_command.get(), **where)
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
            _print(surface_table(shown))
    if "fronts" in found:
        _print(fronts_table(found["fronts"]))
    for line in [*doubts(results), *masking_lines(found)]:
        _tell(line)
    _say(f"report: {files['report.html']}\nrecords: {out}")


def _tracker(name: str | None) -> Callable[[Mapping[str, Any], Path], None]:
    from nonsingular.trackers import tracker

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
    from nonsingular.config import ReproduceSettings, checked, read_config
    from nonsingular.presets import reproduction

    given = {**(read_config(config) if config else {}), **_given(data=data, seeds=seeds, limit=limit, data_dir=data_dir)}
    preset = reproduction(given.get("data", "mnist")).model_dump()
    named = given.get("recipes")  # a file that names recipes runs these alone, each laid over the preset's of that name
    if isinstance(named, Mapping):
        preset["recipes"] = {name: preset["recipes"][name] for name in named if name in preset["recipes"]}
    settings = checked(ReproduceSettings, _under(given, preset))
    if print_config:
        return _print_config(settings)
    out, tracked = out or Path("runs") / f"reproduce-{settings.data}", _tracker(track)
    results = _reproduce(settings, out, _where(workers, engine, address), quiet or json)
    tracked(results, out)
    if json:
        claims = results.get("claims", {})
        print(json_.dumps({"models": {n: m["auc"] for n, m in results["models"].items()}, "claims": claims, "out": str(out)}))
    else:
        _show(results, out)


@app.command
def report(
    *runs: Annotated[Path, Parameter(help="Run directories of demo, evaluate, certify or reproduce; several are compared.")],
    out: Annotated[
        Path | None, Parameter(help="Folder of the report. Default: the run itself; for several, runs/report-NAMES.")
    ] = None,
    schema: Annotated[bool, Parameter(negative="", help="Print the JSON schema of results.json and stop.")] = False,
) -> None:
    """Draw the pictures and the page of finished runs again, from their records.

    Runs with the same data, grid, scope and kind of radii are compared on one page; others stand side by side, and the page says
    in what they differ.
    """
    from nonsingular.manifest import seal
    from nonsingular.report import results_schema, statement, together, write_all
    from nonsingular.runs import read_results

    if schema:
        print(results_schema(), end="")
        return
    if not runs:
        raise InvalidInput("which run? give one or more run directories")
    folders = {run.resolve(): run for run in runs}
    if len(folders) < len(runs):
        raise InvalidInput(f"a run is given twice: {', '.join(map(str, runs))}; give each once")
    plain = len({path.name for path in folders}) == len(runs)
    found = {path.name if plain else str(run): read_results(run) for path, run in folders.items()}
    groups = together(found) if len(runs) > 1 else list(found.values())
    out = out or (runs[0] if len(runs) == 1 else Path("runs") / ("report-" + "-".join(path.name for path in folders))[:100])
    write_all(groups, out)
    if len(runs) == 1 and out.resolve() == runs[0].resolve():
        seal(out)
    for line in statement(groups):
        _say(line)
    for results in groups:
        _show(results, out)


@app.command
def verify(
    run: Annotated[Path, Parameter(help="Run directory of evaluate, certify, demo or reproduce.")], /, *,
    recompute_certificates: Annotated[
        str, Parameter(help="How many certified pairs (example, cell) are proven again: a number, or all.")
    ] = "8",
    attack_again: Annotated[
        int, Parameter(help="How many examples that are said to survive are attacked again; 0 for none.")
    ] = 8,
    model: Annotated[str | None, Parameter(help="Where the model is now; needed if it is code (file.py:function).")] = None,
    weights: Annotated[Path | None, Parameter(help="Where its weights are now. Default: as the run says.")] = None,
    data: Annotated[str | None, Parameter(help="Where the data are now. Default: as the run says.")] = None,
    data_dir: DataDir = None,
    public_key: Annotated[Path | None, Parameter(help="Ed25519 key (PEM) that must have signed the run. Default: none.")] = None,
    threads: int = 1,
    json: Json = False,
) -> None:  # fmt: skip
    """Derive a finished run again from what it stored, and name every difference.

    Confirmed: outcomes, example by example, against the log, the stored perturbations and the settings; accuracies, intervals and
    areas; hashes of model, data and files; pages and pictures. A few certificates are proven again, and a few examples that
    are said to survive are attacked again, chosen at random. Exit code 1 if anything differs or is missing, 2 if it cannot be
    read. What cannot be told is listed as open. Time: a small part of the run's; memory: that of one worker.
    """
    from nonsingular.graph import threads as use_threads
    from nonsingular.verification import verify_run

    if recompute_certificates != "all" and not recompute_certificates.isdecimal():
        raise InvalidInput(f"--recompute-certificates is '{recompute_certificates}'; give a number, or all")
    if attack_again < 0:
        raise InvalidInput(f"--attack-again is {attack_again}; give 0 or more")
    recompute = None if recompute_certificates == "all" else int(recompute_certificates)
    with use_threads(threads):
        found = verify_run(
            run,
            recompute=recompute,
            attacks=attack_again,
            model=model,
            weights=weights,
            data=data,
            data_dir=data_dir,
            public_key=public_key,
        )
    if json:
        print(json_.dumps({"confirmed": found.confirmed, "wrong": found.wrong, "open": found.open}))
    else:
        _tell("\n".join([*(f"confirmed: {s}" for s in found.confirmed), *(f"open: {s}" for s in found.open)]))
    if found.wrong:
        raise Unconfirmed(f"{run} is not confirmed: {'; '.join(found.wrong)}")


@app.command
def sign(
    run: Annotated[Path, Parameter(help="Run directory.")], /, *,
    key: Annotated[Path, Parameter(help="Ed25519 private key in PEM form: openssl genpkey -algorithm ed25519 -out KEY.pem.")],
) -> None:  # fmt: skip
    """Sign the manifest of a finished run, which ties its files together (extra 'sign'). Check with verify --public-key."""
    from nonsingular.manifest import sign as sign_run

    _say(f"signature: {sign_run(run, key)}")


@app.command
def compare(
    first: Annotated[Path, Parameter(help="Run directory of evaluate or certify: what the others are held against.")],
    /,
    *others: Annotated[Path, Parameter(help="Run directories on the same data, grid and scope.")],
    json: Json = False,
) -> None:
    """Whether runs differ, by paired tests on the same examples: the area under the surface, and every cell."""
    from dataclasses import asdict, replace

    from nonsingular.comparison import compare as compare_surfaces
    from nonsingular.report import comparison_table
    from nonsingular.runs import read_surface

    if not others:
        raise InvalidInput(f"{first} is the only run given; give two or more")
    names = _distinct([first, *others])
    base, *rest = (replace(read_surface(run), model=name) for run, name in zip((first, *others), names, strict=True))
    found = [asdict(compare_surfaces(base, other)) for other in rest]
    if json:
        print(json_.dumps(found))
    else:
        _print(comparison_table(found))


def _distinct(runs: list[Path]) -> list[str]:
    """The shortest ends of these paths that tell them apart."""
    parts = [run.resolve().parts for run in runs]
    for k in range(1, max(map(len, parts)) + 1):
        if len(names := ["/".join(p[-k:]) for p in parts]) == len(set(names)):
            return names
    raise InvalidInput(f"{', '.join(map(str, runs))}: the same run is given twice; give different runs")


@app.command
def check(
    run: Annotated[Path, Parameter(help="Run directory of evaluate, certify, demo or reproduce.")],
    /,
    *,
    min_auc: Annotated[float | None, Parameter(help="Least AUC of the attacked surface. Default: none.")] = None,
    min_accuracy: Annotated[
        list[str] | None,
        Parameter(help="Least attacked accuracy at a point: eps_x=0.1,eps_w=0.005:0.4. Can be repeated. Default: none."),
    ] = None,
    min_certified_auc: Annotated[float | None, Parameter(help="Least AUC of the certified surface. Default: none.")] = None,
    min_certified: Annotated[
        list[str] | None, Parameter(help="Least certified accuracy at a point, likewise. Default: none.")
    ] = None,
    interval: Annotated[
        bool, Parameter(negative="", help="Hold the lower end of the 95 % interval against each, not the number itself.")
    ] = False,
    junit: Annotated[Path | None, Parameter(help="Also write the outcomes to this file, as JUnit XML. Default: none.")] = None,
) -> None:
    """Pass or fail a run, for continuous integration: exit code 1 if a number is below its gate."""
    from nonsingular.gates import Gate
    from nonsingular.gates import check as check_results
    from nonsingular.gates import junit as as_junit
    from nonsingular.records import write_atomic
    from nonsingular.runs import read_results

    gates = [] if min_auc is None else [Gate(min_auc)]
    gates += [Gate.at_point(text) for text in min_accuracy or ()]
    gates += [] if min_certified_auc is None else [Gate(min_certified_auc, "certified")]
    gates += [Gate.at_point(text, "certified") for text in min_certified or ()]
    outcomes = check_results(read_results(run), gates, interval=interval)
    if junit:
        write_atomic(junit, as_junit(str(run), outcomes))
    _tell("\n".join(map(str, outcomes)))
    if failed := sum(not o.passed for o in outcomes):
        raise GateMissed(f"{failed} of {len(outcomes)} gates missed")


@app.command(name="list")
def list_(kind: Annotated[str, Parameter(help="attacks, bounds, objectives, models or data.")], /) -> None:
    """The names that settings take, one a line, with what each is, who shares W' or what it is a bound of, and its source."""
    from nonsingular import catalog
    from nonsingular.report.cards import ATTACKS, BOUNDS

    tables: dict[str, Callable[[], dict[str, str]]] = {
        "attacks": lambda: {name: _card(ATTACKS[name]) for name in catalog.ATTACKS},
        "bounds": lambda: {name: _card(BOUNDS[name]) for name in catalog.BOUNDS},
        "objectives": lambda: {name: catalog.described(catalog.OBJECTIVES, name) for name in catalog.OBJECTIVES},
        "models": lambda: {name: catalog.described(catalog.MODELS, name) for name in catalog.MODELS},
        "data": _data_sets,
    }
    kind = {"methods": "objectives", "datasets": "data"}.get(kind, kind)
    if kind not in tables:
        raise InvalidInput(f"there is no list of '{kind}'; choose one of {', '.join(tables)}")
    found = tables[kind]()
    width = max(map(len, found))
    print("\n".join(f"{name:{width}}  {line}" for name, line in found.items()))


def _card(card: Any) -> str:
    """An attack or a bound in one line: a bound says on which side it lies, an attack who shares the weights that it moves."""
    bound = (
        card.means.split(":")[0] if not card.means.startswith("Upper") else f"W': {card.shares[:1].lower()}{card.shares[1:-1]}"
    )
    return f"{card.does} {bound}. Source: {card.source.rstrip('.')}."


def _data_sets() -> dict[str, str]:
    """What is known by name."""
    from nonsingular import catalog
    from nonsingular.readers.public import SOURCES

    def line(name: str) -> str:
        if name not in SOURCES:
            return "8 x 8 handwritten digits, 10 classes, in the package."
        source = SOURCES[name]
        size = " x ".join(map(str, source.shape))
        sizes = f"{source.sizes[0]:,} to train and {source.sizes[1]:,} to test"
        return f"{source.title}: {size} images, {len(source.classes)} classes, {sizes}. Source: {source.url}"

    return {name: line(name) for name in catalog.DATASETS}


_command: ContextVar[str] = ContextVar("command", default="nonsingular")
"""The command line as it was typed: for the record."""

# --- from flags to settings -----------------------------------------------------------------------------------------------

S = TypeVar("S", bound="Settings")


def _given(**values: Any) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None}


def _under(winner: Mapping[str, Any], loser: Mapping[str, Any]) -> dict[str, Any]:
    """`winner` laid over `loser`, mapping by mapping."""
    merged = dict(loser)
    for key, value in winner.items():
        if isinstance(value, Mapping) and key in merged:
            if not isinstance(merged[key], Mapping):
                raise InvalidInput(f"{key} is {merged[key]!r}; give a mapping of settings to values")
            value = _under(value, merged[key])
        merged[key] = value
    return merged


def _merge(schema: type[S], loser: Mapping[str, Any], winner: Mapping[str, Any]) -> S:
    from nonsingular.config import checked

    return checked(schema, _under(winner, loser))


def _print_config(settings: Settings) -> None:
    from nonsingular.config import to_yaml

    print(to_yaml(settings), end="")


def _folder(command: str, settings: Any) -> Path:
    """The default run directory: a name of its own for each model and each other settings."""
    import hashlib

    return Path("runs") / f"{command}-{settings.label}-{hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _where(workers: int | None, engine: str, address: str | None) -> dict[str, Any]:
    """Where the work is done: no setting of the run, for its results do not depend on it."""
    if workers is not None and address is not None:
        raise InvalidInput(f"--workers {workers} and --address {address}: the CPUs of the cluster count; leave --workers out")
    return {"workers": _cores() if workers is None else workers, "engine": engine, "address": address}


# --- running and showing --------------------------------------------------------------------------------------------------


def _reproduce(settings: Any, out: Path, where: Mapping[str, Any], quiet: bool) -> dict[str, Any]:
    from nonsingular.experiment import reproduce
    from nonsingular.manifest import seal
    from nonsingular.report import write

    models = len(settings.recipes) * settings.seeds
    cells = models * len(settings.eps_x) * len(settings.eps_w)
    if not quiet:
        _say(f"{settings.data}: {models} networks to train, {cells} cells of the grid to attack, into {out}")
    with _progress(quiet, {"models": models, "cells": cells}) as report:
        results = reproduce(settings, out, report=report, command=_command.get(), **where)
    write(results, out)
    seal(out)
    return results


@contextmanager
def _progress(quiet: bool, totals: Mapping[str, int]) -> Generator[Callable[[str, int], None]]:
    """Bars on stderr, one for each unit; yields report(unit, n)."""
    if quiet:
        yield lambda what, n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {what: progress.add_task(what, total=total) for what, total in totals.items()}

        def report(what: str, n: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None)
            progress.advance(tasks[what], n)

        yield report


def _show(results: Mapping[str, Any], out: Path) -> None:
    from nonsingular.report import claims_table, doubts, masking_lines, model_table

    _print(model_table(results))
    for line in doubts(results):
        print(line)
    if "claims" in results:
        _print(claims_table(results))
    for model in results["models"].values():
        for line in masking_lines(model):
            _tell(f"{model['title']}: {line}" if len(results["models"]) > 1 else line)
    _say(f"figure: {out / 'figure1.png'}\nreport: {out / 'report.html'}")


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def _say(text: str) -> None:
    print(legible(text), file=sys.stderr)


def _tell(text: str) -> None:
    """Onto stdout."""
    print(legible(text))


class _PlainLines(logging.Formatter):
    """What is logged may quote files."""

    def format(self, record: logging.LogRecord) -> str:
        return legible(super().format(record))


def main(argv: list[str] | None = None) -> int:
    """Entry point.  Returns the exit code; a user's mistake is one line on stderr, without a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_PlainLines("%(message)s"))
    argv = sys.argv[1:] if argv is None else argv
    _command.set(shlex.join(["nonsingular", *argv]))
    try:
        with _signals_end_like_ctrl_c():
            app(argv, exit_on_error=False, print_error=False)
            sys.stdout.flush()
        return 0
    except cyclopts.CycloptsError as e:
        return _fail(f"{e}\nsee: nonsingular --help")
    except (SoundnessError, Unconfirmed, GateMissed) as e:
        _say(f"error: {e}")
        return 1
    except InvalidInput as e:
        return _fail(" ".join(str(e).split()))
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        then = "; what is finished is kept: make room and run the same command again" if full else ""
        return _fail(f"{e.filename or 'a file'}: {e.strerror or e}{then}")
    except BrokenExecutor:
        _say("error: a worker process died (killed, or out of memory); what is finished is kept: run again, with fewer --workers")
        return 1
    except KeyboardInterrupt as e:
        _say(f"interrupted; what is finished is kept; resume with the same command again: {_command.get()}")
        return 128 + (e.number if isinstance(e, Interrupted) else signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal that asks this process to end.  number: which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _signals_end_like_ctrl_c() -> Generator[None]:
    """SIGTERM and SIGHUP raise Interrupted, so that what Ctrl-C cleans up is cleaned up; what is ignored (nohup) stays so."""

    def end(number: int, frame: object) -> None:
        raise Interrupted(number)

    before: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and threading.current_thread() is threading.main_thread() and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> int:
    _say(f"error: {message}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
