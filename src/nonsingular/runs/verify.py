"""verify.py - a finished run derived again from what it stored, and held against what it says.

Everything in results.json but times, versions and the checks of masked gradients comes again out of the settings, the model, the
data, the log and the stored perturbations, by the code that made it.  What does not, or is missing, is named.  That an example
survives shows nowhere but in a certificate: some are attacked again.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nonsingular.certificates.certify import Prover
from nonsingular.data.readers import indices as index_file
from nonsingular.errors import InvalidInput, SoundnessError, Unconfirmed
from nonsingular.evaluation.attacked import surface
from nonsingular.evaluation.certified import Span, identity, prove
from nonsingular.evaluation.schedule import key_of
from nonsingular.evaluation.stored import FOLDER, Found, read_found
from nonsingular.evaluation.walk import Radii
from nonsingular.models.loading import is_code, load_run
from nonsingular.network.graph import logits_at
from nonsingular.network.margins import attained, is_correct, worst_margin
from nonsingular.report import write
from nonsingular.results.claims import judge
from nonsingular.results.surface import CONFIG, EVENTS, RESULTS, Cell, Log, Surface, wilson
from nonsingular.runs.directory import read_results
from nonsingular.runs.evaluate import Attacked, Certified, assemble, dataset, front_dict, judged
from nonsingular.runs.manifest import differences, signed_by
from nonsingular.runs.presets import TITLES
from nonsingular.settings import CertifySettings, EvaluateSettings, ReproduceSettings, checked, read_config, to_yaml
from nonsingular.threat.ball import Perturbation

PAIRS = 8
"""Certified pairs (example, cell) that are proven again where nobody asks for more.  Which ones, no run can foresee."""
SURVIVORS = 8
"""Examples that are said to survive, and are attacked again, where nobody asks for more."""
TOLERANCE = 1e-3
"""How far a margin may lie from the recorded one, relative to 1 + its size: last bits differ from machine to machine."""
SHOWN = 3
"""Differences of a kind that are named."""


@dataclass
class Verification:
    """What was found: sentences.  confirmed: derived again and equal.  wrong: not.  open: what this cannot tell."""

    confirmed: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])
    open: list[str] = field(default_factory=list[str])

    def judge(self, wrong: Sequence[str], right: str) -> None:
        """`right` is confirmed if nothing is wrong."""
        if wrong:
            more = len(wrong) - SHOWN
            self.wrong += [*wrong[:SHOWN], *([f"and {more} more of this kind"] if more > 0 else [])]
        else:
            self.confirmed.append(right)


def verify_run(
    run: Path, *, recompute: int | None = PAIRS, attacks: int = SURVIVORS, model: str | None = None,
    weights: Path | None = None, data: str | None = None, data_dir: Path | None = None, public_key: Path | None = None,
) -> Verification:  # fmt: skip
    """Derives a finished run of evaluate, certify or reproduce (demo) again.

    recompute: how many of the certified pairs (example, cell) are proven again; None for all of them.
    attacks: how many examples that are said to survive are attacked again, from nothing, each in the largest ball where it does;
        in scopes batch and dataset two cells of one group, if it is not 0.  That nothing was found leaves no trace which could
        be derived again: a run whose perturbations were weakened or left out everywhere is found out by this alone.
    model, weights, data, data_dir: where these lie now, if not where the settings say, seen from here, from the run or from a
        folder above it.  A model that is code (file.py:function) runs: it must be named here.
    public_key: that must have signed the manifest.
    Raises InvalidInput for a run that is not finished, or damaged, or whose model or data cannot be found.
    Cost: a few passes for every stored perturbation, the pages, and the attacks and certificates asked for.  Memory: that of
    the run with one worker.
    """
    found = Verification()
    results, values = read_results(run), read_config(run / CONFIG)
    found.judge(differences(run), "every file has the hash that the manifest states")
    if public_key is not None:
        found.judge([] if signed_by(run, public_key) else [f"the signature is not of {public_key}"], f"signed by {public_key}")
    given = {"model": model, "weights": weights, "data": data, "data_dir": data_dir}
    if "recipes" in values:
        settings = checked(ReproduceSettings, values)
        again = _reproduced(settings, run, results, found, given)
    else:
        settings = checked(EvaluateSettings if "scope" in values else CertifySettings, values)
        again = _one(settings, run, results, found, given, recompute, attacks)
    if (run / CONFIG).read_text(encoding="utf-8") != to_yaml(settings):
        found.wrong.append(f"{CONFIG} is not as a run writes it")
    for part in ("environment", "command"):
        found.open.append(f"{part}: as the run states it")
    if again is not None:
        unequal = list(_unequal(results, json.loads(json.dumps(again)), ""))
        found.judge(
            [f"{RESULTS}: {path} is {_short(a)}, derived again {_short(b)}" for path, a, b in unequal],
            f"{RESULTS}: every outcome, accuracy, interval and area follows from the log, the settings, the model and the data",
        )
        if unequal:
            found.open.append("pages and pictures: not compared, since the records differ")
            return found
    _pages(results, run, found)
    return found


# --- the records ----------------------------------------------------------------------------------------------------------

_STATED = {"environment", "command", "masking", "seconds", "wall_seconds", "fronts"}
"""What is not derived again; times are not."""


def _unequal(said: Any, again: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(said, dict) and isinstance(again, dict):
        a, b = dict[str, Any](said), dict[str, Any](again)
        for key in sorted((a.keys() | b.keys()) - _STATED):
            yield from _unequal(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(said, list) and isinstance(again, list) and len(said) == len(again):
        for i, (p, q) in enumerate(zip(said, again, strict=True)):
            yield from _unequal(p, q, f"{path}[{i}]")
    elif said != again:
        yield path, said, again


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "..."


def _at(value: Any, run: Path) -> Any:
    """A path of the settings where it lies: seen from here, from the run, or from a folder above it."""
    if value is None or Path(value).is_absolute() or Path(value).exists():
        return value
    above = (folder / str(value) for folder in (run.resolve(), *run.resolve().parents))
    return next((str(p) for p in above if p.exists()), value)


def _located(settings: Any, run: Path, given: Mapping[str, Any]) -> Any:
    """The settings with what they name at the place where it is now."""
    if given["model"] is None and is_code(_at(settings.model, run)):
        raise InvalidInput(
            f"the model of this run is '{settings.model}', which is code and would be run; if you trust it, name it: "
            f"nonsingular verify {run} --model {settings.model}"
        )
    found = {
        "model": given["model"] or _at(settings.model, run),
        "weights": given["weights"] or _at(settings.weights, run),
        "data": given["data"] or _at(settings.data, run),
        "data_dir": given["data_dir"] or _at(settings.data_dir, run),
        "indices": _at(settings.indices, run),
    }
    paths = ("weights", "data_dir", "indices")
    return settings.model_copy(update={k: Path(v) if v and k in paths else v for k, v in found.items()})


def _again(job: Attacked | Certified, name: str, log: Path) -> Surface:
    """The surface of a job whose every piece is in its log.  Raises Unconfirmed if one is not."""

    def refuse(task: str, *args: Any) -> Future[Any]:
        raise Unconfirmed(f"{EVENTS} lacks cells of this run")

    def parts(spans: Sequence[Span], known: Any) -> Iterator[Any]:
        if spans:
            raise Unconfirmed(f"{EVENTS} lacks certificates of this run")
        return iter(())

    x, y, columns, rows = job.split.x, job.split.y.long(), job.columns, job.rows
    if isinstance(job, Certified):
        return prove(job.model, x, y, job.proof, columns, rows, log=log, parts=parts).surface(name)
    return surface(
        job.model, x, y, job.method, columns, rows, certify=job.settings.certify, name=name, log=log, keep=False, submit=refuse,
        parts=parts, doubts=job.doubts,
    )  # fmt: skip


def _one(
    settings: EvaluateSettings | CertifySettings, run: Path, results: Mapping[str, Any], found: Verification,
    given: Mapping[str, Any], recompute: int | None, attacks: int,
) -> dict[str, Any] | None:  # fmt: skip
    here = _located(settings, run, given)
    job = Attacked(here) if isinstance(here, EvaluateSettings) else Certified(here)
    about = [s["about"] for m in results["models"].values() for s in m["surfaces"]]
    stated = {a.get(k) for a in about for k in ("model_sha256", "data_sha256")}
    changed = [
        f"the {k.partition('_')[0]} is another one than {RESULTS} states" for k, v in job.hashes.items() if v not in stated
    ]
    found.judge(changed, "model and data have the hashes that the results state")
    log, label = run / EVENTS, settings.label
    if not any(True for _ in Log(log)):
        found.wrong.append(f"{EVENTS} is missing or empty")
        return None
    try:
        again_surface = _again(job, label, log)
    except Unconfirmed as e:
        found.wrong.append(str(e))
        return None
    except SoundnessError as e:
        found.wrong.append(f"{EVENTS}: example {e.example} is certified and lost at ({e.eps_x:g}, {e.eps_w:g})")
        return None
    model = next(iter(results["models"].values()))
    again = assemble(
        {label: (label, {}, [again_surface])}, [0], job.data, settings, results.get("environment", {}), results["command"]
    )
    if job.split.columns:
        again["data"]["columns"] = list(job.split.columns)
    if job.input_radii:
        again["data"]["input_radii"] = job.input_radii
    if here.indices is not None:
        again["data"]["indices"] = {"file": str(settings.indices), "sha256": index_file.sha256(here.indices)}
    if isinstance(job, Attacked):
        _perturbations(job, run, again_surface, found)
        if known := job.examples(log):
            again["models"][label]["examples"] = known
        _survivors(job, again_surface, found, attacks)
        if job.settings.masking != ("masking" in model):
            found.wrong.append(
                f"{RESULTS}: the signs of masked gradients are {'missing' if job.settings.masking else 'not asked for'}"
            )
        elif "masking" in model:
            found.open.append("masking: its attacks are not run again")
    elif job.settings.accuracy and "fronts" not in model:
        found.wrong.append(f"{RESULTS}: the fronts of certified radii are missing")
    proven = again_surface.certified if isinstance(job, Attacked) else again_surface
    if proven is not None and proven.outcomes is not None:
        _certificates(job, proven.outcomes, found, recompute)
    if isinstance(job, Certified) and "fronts" in model:
        _fronts(job, model["fronts"], found, recompute)
    return again


# --- stored perturbations -------------------------------------------------------------------------------------------------


def _perturbations(job: Attacked, run: Path, again: Surface, found: Verification) -> None:
    """What is lost, example by example and cell by cell, is what the stored tensors break."""
    method = job.method
    assert again.outcomes is not None
    stored = stored_perturbations(job, run / FOLDER)
    total = sum(len(numbers) for several in stored.values() for _, numbers, _ in several)
    wrong_at_x = _wrong_at_x(job)
    off = [r for r in stored if r[0] not in job.columns or r[1] not in job.rows]
    lost_somewhere = bool((~again.outcomes & ~wrong_at_x).any())
    if not stored and lost_somewhere:
        found.wrong.append(f"{FOLDER} is missing: nothing shows that the examples that count as lost are")
        return
    lost = lost_to(stored, job, run / EVENTS)
    differ = [f"a stored perturbation lies at {r}, which is no point of the grid" for r in off]
    undecided = 0
    for i, eps_w in enumerate(job.rows):
        for j, eps_x in enumerate(job.columns):
            odd = np.flatnonzero(lost[i, j] != ~again.outcomes[i, j])
            near = _near(odd, stored)
            undecided += len(near)
            odd = np.setdiff1d(odd, near)
            if len(odd):
                differ.append(
                    f"at (eps_x, eps_w) = ({eps_x:g}, {eps_w:g}) the stored perturbations break other examples than "
                    f"{RESULTS} says: {', '.join(map(str, odd[:5]))}{' ...' if len(odd) > 5 else ''}"
                )
    if method.scope != "sample" and method.nested:
        differ += _weaker(job, again.outcomes, stored)
    found.judge(differ, f"{total} stored perturbations lie in their balls and break exactly the examples that count as lost")
    found.judge(_recorded_margins(job, run / EVENTS, stored), "their margins are those of the log")
    if undecided:
        found.open.append(f"{undecided} outcomes have margins within rounding of 0 and are decided by the last bits of a machine")
    if method.scope == "sample":
        found.open.append("margins of examples that survive: their perturbations are not kept")


def _fits(one: Found, job: Attacked, path: Path) -> None:
    """Raises InvalidInput for tensors that do not fit the data or the model."""
    n, rows = len(job.split.x), one.rows
    good = (
        rows.dtype == torch.int64 and rows.dim() == 1 and bool(((rows >= 0) & (rows < n)).all()) and one.scope == job.method.scope
        and "x" in one.tensors and one.tensors["x"].shape == (len(rows), *job.split.x.shape[1:])
        and one.tensors["x"].dtype == job.split.x.dtype and all(map(math.isfinite, one.radii)) and min(one.radii) >= 0
    )  # fmt: skip
    if not good:
        raise InvalidInput(f"{path} holds perturbations that do not fit this data or this scope")


def _margins(one: Found, job: Attacked, chunk: int = 64) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of its examples and the margins that the model attains there.  Raises InvalidInput outside its ball."""
    x, y, unit = job.split.x, job.split.y.long(), job.method.unit
    margins: list[torch.Tensor] = []
    for some in torch.arange(len(one.rows)).split(chunk if one.scope == "sample" else max(1, len(one.rows))):
        part = one.part(some)
        try:
            point = part.point(job.model, unit).check(job.model, x[part.rows], unit.scaled(*one.radii))
            margins.append(attained(logits_at(job.model, point), y[part.rows]))
        except (AssertionError, RuntimeError, KeyError, IndexError) as e:
            raise InvalidInput(f"a stored perturbation is not within ({one.radii[0]:g}, {one.radii[1]:g}): {e}") from None
    joined = torch.cat(margins) if margins else torch.zeros(0)
    return one.rows.numpy(), joined.double().cpu().numpy()


Stored = Mapping[Radii, Sequence[tuple[Found, NDArray[np.int64], NDArray[np.float64]]]]


def stored_perturbations(job: Attacked, folder: Path) -> Stored:
    """Radii -> what was found there, the numbers of its examples, and the margins that the model attains at it now.

    Raises InvalidInput for damaged files, for tensors of other shapes, and for what lies outside its ball.
    """
    stored: dict[Radii, list[tuple[Found, NDArray[np.int64], NDArray[np.float64]]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for one in read_found(path):
            _fits(one, job, path)
            stored.setdefault(one.radii, []).append((one, *_margins(one, job)))
    return stored


def _wrong_at_x(job: Attacked) -> NDArray[np.bool_]:
    with torch.no_grad():
        return ~is_correct(logits_at(job.model, Perturbation(job.split.x)), job.split.y.long()).cpu().numpy()


def lost_to(stored: Stored, job: Attacked, log: Path) -> NDArray[np.bool_]:
    """(rows, columns, n) what the stored perturbations break, by the rule of the scope.

    sample: an example that is broken in a ball is broken in every larger one.  batch, dataset, and attacks that take no start:
    what the perturbation breaks that the log names for a group and a cell.
    """
    n = len(job.split.x)
    lost = np.zeros((len(job.rows), len(job.columns), n), dtype=bool)
    nested = job.method.scope == "sample" and job.method.nested
    if nested:
        lost |= _wrong_at_x(job)
    broken: dict[Radii, NDArray[np.bool_]] = {}
    for radii, several in stored.items():
        at = broken.setdefault(radii, np.zeros(n, dtype=bool))
        for _, numbers, margins in several:
            at[numbers[~(margins > 0)]] = True
    if nested:
        for radii, at in broken.items():
            within = np.logical_and.outer(np.array(job.rows) >= radii[1], np.array(job.columns) >= radii[0])
            lost |= within[:, :, None] & at
        return lost
    for span, cell in _cells(job, log):
        origin, group = cell.origin or (cell.eps_x, cell.eps_w), slice(*span)
        if origin in broken and cell.eps_x in job.columns and cell.eps_w in job.rows:
            lost[job.rows.index(cell.eps_w), job.columns.index(cell.eps_x), group] |= broken[origin][group]
    if job.method.scope == "sample" and job.method.name != "paper":
        np.logical_or.accumulate(lost, axis=0, out=lost)
        np.logical_or.accumulate(lost, axis=1, out=lost)
    return lost


def _weaker(job: Attacked, outcomes: NDArray[np.bool_], stored: Stored) -> list[str]:
    """Cells where one W' for a group, stored for a ball within, leaves fewer right than the run counts there."""
    groups, wrong = job.method.groups(job.model, len(job.split.x)), set[Radii]()
    for radii, several in stored.items():
        for _, numbers, margins in several:
            if not len(numbers):
                continue
            start, stop = next(g for g in groups if g[0] <= int(numbers[0]) < g[1])
            broken = int((margins <= -TOLERANCE / 100).sum())
            for i, j in np.argwhere(np.logical_and.outer(np.array(job.rows) >= radii[1], np.array(job.columns) >= radii[0])):
                if broken > int((~outcomes[i, j, start:stop]).sum()):
                    wrong.add((job.columns[j], job.rows[i]))
    return [
        f"at (eps_x, eps_w) = ({c:g}, {r:g}) a stored perturbation leaves fewer right than {RESULTS} says"
        for c, r in sorted(wrong)
    ]


def _cells(job: Attacked, log: Path) -> Iterator[tuple[tuple[int, int], Cell]]:
    """The cells of the log that count, group by group; of a cell that was written twice, the last."""
    x, y = job.split.x, job.split.y.long()
    with torch.no_grad():
        key = key_of(job.method, identity(job.model, x, y, logits_at(job.model, Perturbation(x))))
    latest: dict[tuple[tuple[int, int], Radii], Cell] = {}
    for entry in Log(log):
        for cell in map(Cell.from_dict, entry.get("cells", ()) if entry.get("key") == key else ()):
            span = (int(entry["span"][0]), int(entry["span"][1]))
            latest[span, (cell.eps_x, cell.eps_w)] = cell
    for (span, _), cell in latest.items():
        yield span, cell


def _near(odd: NDArray[Any], stored: Stored) -> NDArray[Any]:
    """Those of these examples that a stored margin within rounding of 0 decides."""
    found = (pair for several in stored.values() for _, *pair in several)
    close = {int(k) for numbers, margins in found for k in numbers[np.abs(margins) <= TOLERANCE / 100]}
    return np.array([k for k in odd if int(k) in close], dtype=odd.dtype)


def _recorded_margins(job: Attacked, log: Path, stored: Stored) -> list[str]:
    """What of the log is not the margin of a stored perturbation, where there is one found in that very ball."""
    wrong: list[str] = []
    for span, cell in _cells(job, log):
        if cell.margins is None or (cell.origin or (cell.eps_x, cell.eps_w)) != (cell.eps_x, cell.eps_w):
            continue
        for _, numbers, margins in stored.get((cell.eps_x, cell.eps_w), ()):
            inside = (numbers >= span[0]) & (numbers < span[1])
            said = cell.margins[numbers[inside] - span[0]].astype(float)
            apart = np.abs(said - margins[inside]) > TOLERANCE * (1 + np.abs(margins[inside]))
            if apart.any():
                at = f"example {numbers[inside][apart][0]} at ({cell.eps_x:g}, {cell.eps_w:g})"
                wrong.append(f"{EVENTS}: the margin of {at} is not that of its perturbation")
    return wrong


# --- what is said to survive ---------------------------------------------------------------------------------------------------


def _survivors(job: Attacked, again: Surface, found: Verification, attacks: int) -> None:
    """Attacks some of what is said to survive uncertified, from nothing.  Honest runs began from smaller balls and found more."""
    assert again.outcomes is not None
    held = None if again.certified is None else again.certified.outcomes
    said = again.outcomes if held is None else again.outcomes & ~held
    total = int(said.sum())
    if not total:
        return
    shared = job.method.scope != "sample"
    tried, broken = (_attacked_cells if shared else _attacked_examples)(
        job, again.outcomes if shared else said, min(attacks, total)
    )
    text = f"{broken} of {tried} examples that count as surviving break under {job.method.name}, run again"
    if broken > max(1, tried // 2) or (shared and broken):
        found.wrong.append(f"{text}: what {RESULTS} says survives was not attacked like this")
    elif tried:
        (found.open if broken else found.confirmed).append(text)
    found.open.append(
        f"{total} pairs (example, cell) survive without a certificate: the attack found nothing, and another one may; "
        f"{'a few were' if tried else 'none was'} attacked again (--attack-again)"
    )


def _attacked_examples(job: Attacked, said: NDArray[np.bool_], attacks: int) -> tuple[int, int]:
    """(tried, broken): random examples, each in the largest ball where it survives."""
    x, y = job.split.x, job.split.y.long()
    size = np.add.outer(np.arange(len(job.rows)), np.arange(len(job.columns)))[:, :, None] * said
    some = np.flatnonzero(size.any((0, 1)))
    chosen = SystemRandom().sample(some.tolist(), min(attacks, len(some)))
    at: dict[tuple[int, int], list[int]] = {}
    for k in chosen:
        i, j = np.unravel_index(int(size[:, :, k].argmax()), size.shape[:2])
        at.setdefault((int(i), int(j)), []).append(k)
    broken = 0
    for (i, j), here in at.items():
        rows, ball = torch.tensor(here), job.method.unit.scaled(job.columns[j], job.rows[i])
        point = job.method.attack(job.model, x[rows], y[rows], ball, scope="sample").check(job.model, x[rows], ball)
        broken += int((attained(logits_at(job.model, point), y[rows]) < -TOLERANCE).sum())
    return len(chosen), broken


def _attacked_cells(job: Attacked, outcomes: NDArray[np.bool_], attacks: int) -> tuple[int, int]:
    """(tried, broken): one group, in its largest ball and in a random one; broken: how many fewer are right, beyond noise."""
    x, y = job.split.x, job.split.y.long()
    start, stop = SystemRandom().choice(job.method.groups(job.model, len(x)))
    cells = [(i, j) for i, r in enumerate(job.rows) for j, c in enumerate(job.columns) if r or c]
    tried = broken = 0
    for i, j in {cells[-1], SystemRandom().choice(cells)} if attacks and cells else ():
        ball = job.method.unit.scaled(job.columns[j], job.rows[i])
        point = job.method.attack(job.model, x[start:stop], y[start:stop], ball, scope=job.method.scope)
        right = int(is_correct(logits_at(job.model, point.check(job.model, x[start:stop], ball)), y[start:stop]).sum())
        low, high = wilson(right, stop - start)
        fewer = int(outcomes[i, j, start:stop].sum()) - right
        tried += stop - start
        broken += fewer if fewer > max(1.0, (stop - start) * float(high - low)) else 0
    return tried, broken


# --- certificates ---------------------------------------------------------------------------------------------------------


def _certificates(job: Attacked | Certified, held: NDArray[np.bool_], found: Verification, recompute: int | None) -> None:
    """Proves some of what is certified again: each pair in its cell, or in the largest ball in which the run certifies it."""
    pairs = np.argwhere(held)
    if not len(pairs):
        return
    if recompute is not None and recompute < len(pairs):
        pairs = pairs[SystemRandom().sample(range(len(pairs)), recompute)]
    total = int(held.sum())
    assert job.proof is not None  # something is certified
    prove, x, y = Prover(job.model, job.proof.method), job.split.x, job.split.y.long()
    with torch.no_grad():
        right = is_correct(logits_at(job.model, Perturbation(x)), y).cpu().numpy()
    failed: list[str] = []
    for i, j in np.unique(pairs[:, :2], axis=0):
        todo = pairs[(pairs[:, 0] == i) & (pairs[:, 1] == j)][:, 2]
        for a, b in [(int(i), int(j)), *_larger(held, int(i), int(j))]:
            here = np.array([k for k in todo if held[a, b, k]], dtype=np.int64)
            if len(here):
                at = torch.from_numpy(here)
                lower = prove(x[at], y[at], job.proof.unit.scaled(job.columns[b], job.rows[a]))
                good = ((worst_margin(lower, y[at]) > 0) & torch.isfinite(lower).all(1)).cpu().numpy() & right[here]
                todo = np.setdiff1d(todo, here[good])
        if len(todo):
            failed.append(
                f"at (eps_x, eps_w) = ({job.columns[j]:g}, {job.rows[i]:g}) the bound does not certify "
                f"{', '.join(map(str, todo[:5]))}{' ...' if len(todo) > 5 else ''}"
            )
    found.judge(failed, f"{len(pairs)} of {total} certified pairs (example, cell) are proven again")
    if len(pairs) < total:
        found.open.append(f"{total - len(pairs)} certified pairs were not proven again (--recompute-certificates all)")


def _larger(held: NDArray[np.bool_], i: int, j: int) -> Iterator[tuple[int, int]]:
    """Cells with larger radii at which something is certified."""
    return ((int(a) + i, int(b) + j) for a, b in np.argwhere(held[i:, j:].any(2)) if (a, b) != (0, 0))


def _fronts(job: Certified, said: Any, found: Verification, recompute: int | None) -> None:
    """Every front computed again, or its shares certified again at one input radius."""
    if recompute is None:
        front = job.front(None, lambda what, n: None)
        again = [front_dict(front, share) for share in job.settings.accuracy]
        found.judge([] if said == again else [f"{RESULTS}: fronts are not those computed again"], "fronts of certified radii")
        return
    wrong = [] if [f["accuracy"] for f in said] == list(job.settings.accuracy) else [f"{RESULTS}: fronts are of other shares"]
    x, y = job.split.x, job.split.y.long()
    for front in said if recompute else ():
        radii = [(c, r) for c, r in zip(front["eps_x"], front["eps_w"], strict=True) if r is not None]
        if tuple(front["eps_x"]) != tuple(job.columns):
            wrong.append(f"{RESULTS}: a front is at other input radii than the grid")
        elif radii:
            eps_x, eps_w = SystemRandom().choice(radii)
            lower = Prover(job.model, job.proof.method)(x, y, job.proof.unit.scaled(eps_x, eps_w))
            share = float(((worst_margin(lower, y) > 0) & torch.isfinite(lower).all(1)).double().mean())
            if share < front["accuracy"] - 1e-9:
                wrong.append(
                    f"{RESULTS}: fronts say {front['accuracy']:g} at ({eps_x:g}, {eps_w:g}), where {share:g} is certified"
                )
    found.judge(wrong, f"fronts of certified radii, {'each at one input radius' if recompute else 'by their form alone'}")
    found.open.append("fronts at the other input radii, and that no larger radius is certified (--recompute-certificates all)")


# --- the whole paper ------------------------------------------------------------------------------------------------------


def _reproduced(
    settings: ReproduceSettings, run: Path, results: Mapping[str, Any], found: Verification, given: Mapping[str, Any]
) -> dict[str, Any] | None:  # fmt: skip
    """Every surface from its log, and the claims from these.  `reproduce` keeps no perturbations."""
    seeds = list(range(settings.first_seed, settings.first_seed + settings.seeds))
    where = given["data_dir"] or _at(settings.data_dir, run)
    found_at = given["data"] or _at(settings.data, run)
    data, models = dataset(found_at, where and Path(where)), dict[str, Any]()
    for name, recipe in settings.recipes.items():
        surfaces: list[Surface] = []
        for seed in seeds:
            folder = run / "models" / f"{name}-seed{seed}"
            if not (folder / EVENTS).exists():
                found.wrong.append(f"models/{name}-seed{seed}/{EVENTS} is missing")
                return None
            asked = EvaluateSettings(
                model=str(folder), data=found_at, data_dir=where and Path(where), split=settings.split, limit=settings.limit,
                eps_x=settings.eps_x, eps_w=settings.eps_w, scope=settings.scope, attack=settings.attack,
            )  # fmt: skip
            trained = load_run(folder)[1]
            if (trained.recipe, trained.network, trained.seed) != (recipe, settings.network, seed):
                found.wrong.append(f"models/{name}-seed{seed} was trained with other settings than {CONFIG} says")
            try:
                surfaces.append(_again(Attacked(asked), name, folder / EVENTS))
            except Unconfirmed as e:
                found.wrong.append(f"{name}, seed {seed}: {e}")
                return None
        models[name] = (TITLES.get(name, name), recipe.model_dump(), surfaces)
    again = assemble(models, seeds, data, settings, results.get("environment", {}), results["command"])
    if judged(settings):
        again["claims"] = judge(again["models"])
    found.open.append("outcomes: reproduce keeps no perturbations, so they are those of the log and no more")
    found.open.append("training: the weights are as stored, and were not trained again")
    return again


# --- pages ----------------------------------------------------------------------------------------------------------------


def _pages(results: Mapping[str, Any], run: Path, found: Verification) -> None:
    """Pictures, tables and pages are what these records are drawn as, byte by byte."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = write(results, Path(scratch))
        wrong = [
            f"{name} is missing" if not (run / name).is_file() else f"{name} does not show {RESULTS}"
            for name, path in sorted(drawn.items())
            if not (run / name).is_file() or (run / name).read_bytes() != path.read_bytes()
        ]
    found.judge(wrong, f"{', '.join(sorted(drawn))} are what {RESULTS} is drawn as")
