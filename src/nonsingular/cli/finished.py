"""finished.py - the commands on finished runs."""

from __future__ import annotations

import json as json_
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nonsingular.cli.app import app, typed
from nonsingular.cli.options import GIVEN, HERE, DataDir, Json, Quiet, Where
from nonsingular.cli.screen import print_table, progress, say, show, show_surface, tell
from nonsingular.errors import GateMissed, InvalidInput, Unconfirmed


@app.command
def report(
    *runs: Annotated[Path, Parameter(help="Run directories of demo, evaluate, certify or reproduce; several are compared.")],
    out: Annotated[
        Path | None, Parameter(help="Folder of the report. Default: the run itself; for several, runs/report-NAMES.")
    ] = None,
    schema: Annotated[bool, Parameter(negative="", help="Print the JSON schema of results.json and stop.")] = False,
) -> None:
    """Draw the pictures and the page of finished runs again, from their records.

    Runs with the same data, grid, scope and kind of radii are compared on one page; others are shown side by side, and the page
    names their differences.
    """
    from nonsingular.report import results_schema, write_all
    from nonsingular.report.compare import statement, together
    from nonsingular.runs.campaigns import CAMPAIGN
    from nonsingular.runs.directory import read_results
    from nonsingular.runs.manifest import seal

    if schema:
        print(results_schema(), end="")
        return
    if not runs:
        raise InvalidInput("which run? give one or more run directories")
    if len(runs) == 1 and (runs[0] / CAMPAIGN).exists():
        return _campaign_again(runs[0], out)
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
        say(line)
    for results in groups:
        show(results, out)


def _campaign_again(run: Path, out: Path | None) -> None:
    """The page of one campaign, written again."""
    from nonsingular.runs.campaigns import read_campaign, write_page
    from nonsingular.runs.manifest import seal

    path = write_page(read_campaign(run), out or run)
    if path.parent.resolve() == run.resolve():
        seal(run)
    say(f"report: {path}")


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where model and data are now."""

    model: Annotated[
        str | None, Parameter(help="Where the model is now; needed if it is code (file.py:function). Default: as the run says.")
    ] = None
    weights: Annotated[Path | None, Parameter(help="Where its weights are now. Default: as the run says.")] = None
    data: Annotated[str | None, Parameter(help="Where the data are now. Default: as the run says.")] = None
    data_dir: DataDir = None


AS_SAID = Located()


@app.command
def verify(
    run: Annotated[Path, Parameter(help="Run directory of evaluate, certify, demo or reproduce.")], /, *,
    recompute_certificates: Annotated[
        str, Parameter(help="How many certified pairs (example, cell) are proven again: a number, or all.")
    ] = "8",
    attack_again: Annotated[
        int, Parameter(help="How many examples recorded as surviving are attacked again; 0 for none.")
    ] = 8,
    where: Annotated[Located, GIVEN] = AS_SAID,
    public_key: Annotated[Path | None, Parameter(help="Ed25519 key (PEM) that must have signed the run. Default: none.")] = None,
    threads: int = 1,
    json: Json = False,
) -> None:  # fmt: skip
    """Derive a finished run again from what it stored, and name every difference.

    Confirmed: outcomes, example by example, against the log, the stored perturbations and the settings; accuracies, intervals and
    areas; hashes of model, data and files; pages and pictures. A few certificates are proven again, and a few examples recorded
    as surviving are attacked again, chosen at random. Exit code 1 if anything differs or is missing, 2 if it cannot be read. What
    cannot be checked is listed as open. Time: a small part of the run's; memory: that of one worker.
    """
    from nonsingular.network.calling import threads as use_threads
    from nonsingular.runs.verify import Effort, verify_run
    from nonsingular.runs.whereabouts import Whereabouts

    if recompute_certificates != "all" and not recompute_certificates.isdecimal():
        raise InvalidInput(f"--recompute-certificates is '{recompute_certificates}'; give a number, or all")
    if attack_again < 0:
        raise InvalidInput(f"--attack-again is {attack_again}; give 0 or more")
    recompute = None if recompute_certificates == "all" else int(recompute_certificates)
    with use_threads(threads):
        whereabouts = Whereabouts(where.model, where.weights, where.data, where.data_dir)
        found = verify_run(run, Effort(recompute, attack_again), whereabouts, public_key)
    if json:
        print(json_.dumps({"confirmed": found.confirmed, "wrong": found.wrong, "open": found.open}))
    else:
        tell("\n".join([*(f"confirmed: {s}" for s in found.confirmed), *(f"open: {s}" for s in found.open)]))
    if found.wrong:
        raise Unconfirmed(f"{run} is not confirmed: {'; '.join(found.wrong)}")


@app.command
def merge(
    *shards: Annotated[Path, Parameter(help="Run directories of all shards of one run of evaluate or certify, in any order.")],
    out: Annotated[Path, Parameter(help="Run directory of the whole.")],
    located: Annotated[Located, GIVEN] = AS_SAID,
    where: Annotated[Where, GIVEN] = HERE,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Join the shards of a run ('evaluate --shard 1/4' and so on): the result is that of the run done at once, bit for bit.

    Needs model and data, as the run does. What no shard could do alone is done here: certificates of examples on the border of
    two shards, and the checks of --masking. Shards that are missing, given twice, unfinished, changed, or of another run, model,
    data or kind of machine are named, and nothing is written.
    """
    from nonsingular.runs.evaluate import Told
    from nonsingular.runs.shards import merge_run
    from nonsingular.runs.whereabouts import Whereabouts

    whereabouts = Whereabouts(located.model, located.weights, located.data, located.data_dir)
    with progress(quiet or json, {}) as report:
        results = merge_run(shards, out, where.workplace(), whereabouts, Told(report), typed.get())
    show_surface(results, out / "report.html", out, json=json)


@app.command
def sign(
    run: Annotated[Path, Parameter(help="Run directory.")], /, *,
    key: Annotated[Path, Parameter(help="Ed25519 private key in PEM form: openssl genpkey -algorithm ed25519 -out KEY.pem.")],
) -> None:  # fmt: skip
    """Sign the manifest of a finished run, which ties its files together (extra 'sign'). Check with verify --public-key."""
    from nonsingular.runs.manifest import sign as sign_run

    say(f"signature: {sign_run(run, key)}")


@app.command
def compare(
    first: Annotated[Path, Parameter(help="Run directory of evaluate or certify: the others are compared with it.")],
    /,
    *others: Annotated[Path, Parameter(help="Run directories on the same data, grid and scope.")],
    json: Json = False,
) -> None:
    """Test whether runs differ, by paired tests on the same examples: the area under the surface, and every cell."""
    from dataclasses import asdict, replace

    from nonsingular.report.paired import comparison_table
    from nonsingular.results.comparison import compare as compare_surfaces
    from nonsingular.runs.directory import read_surface

    if not others:
        raise InvalidInput(f"{first} is the only run given; give two or more")
    names = _distinct([first, *others])
    base, *rest = (replace(read_surface(run), model=name) for run, name in zip((first, *others), names, strict=True))
    found = [asdict(compare_surfaces(base, other)) for other in rest]
    if json:
        print(json_.dumps(found))
    else:
        print_table(comparison_table(found))


def _distinct(runs: list[Path]) -> list[str]:
    """The shortest ends of these paths that distinguish them."""
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
    min_certified_auc: Annotated[
        float | None,
        Parameter(help="Least AUC of the certified surface; where examples share W', of the shared certificates. Default: none."),
    ] = None,
    min_certified: Annotated[
        list[str] | None, Parameter(help="Least certified accuracy at a point, likewise. Default: none.")
    ] = None,
    interval: Annotated[
        bool, Parameter(negative="", help="Compare the lower end of the 95 % interval with each, not the number itself.")
    ] = False,
    junit: Annotated[Path | None, Parameter(help="Also write the outcomes to this file, as JUnit XML. Default: none.")] = None,
) -> None:
    """Pass or fail a run, for continuous integration: exit code 1 if a number is below its gate."""
    from nonsingular.results.files import write_atomic
    from nonsingular.results.gates import Gate
    from nonsingular.results.gates import check as check_results
    from nonsingular.results.gates import junit as as_junit
    from nonsingular.runs.directory import read_results

    gates = [] if min_auc is None else [Gate(min_auc)]
    gates += [Gate.at_point(text) for text in min_accuracy or ()]
    gates += [] if min_certified_auc is None else [Gate(min_certified_auc, "certified")]
    gates += [Gate.at_point(text, "certified") for text in min_certified or ()]
    outcomes = check_results(read_results(run), gates, interval=interval)
    if junit:
        write_atomic(junit, as_junit(str(run), outcomes))
    tell("\n".join(map(str, outcomes)))
    if failed := sum(not o.passed for o in outcomes):
        raise GateMissed(f"{failed} of {len(outcomes)} gates missed")
