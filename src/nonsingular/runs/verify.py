"""verify.py - a finished run derived again from what it stored, and compared with its results.

Everything in results.json but times, versions and the checks of masked gradients is computed again from the settings, the model,
the data, the log and the stored perturbations, by the code that made it.  Differences and missing parts are named.  Only a
certificate proves that an example survives: some others are attacked again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonsingular.errors import SharedSoundnessError, SoundnessError, Unconfirmed
from nonsingular.evaluation.execution import from_log
from nonsingular.models.loading import load_run
from nonsingular.report import write
from nonsingular.results.claims import judge
from nonsingular.results.files import Log
from nonsingular.results.surface import CONFIG, EVENTS, RESULTS, Surface
from nonsingular.runs.campaigns import CAMPAIGN, verify_campaign
from nonsingular.runs.directory import read_results
from nonsingular.runs.evaluate import Circumstances, assemble, record
from nonsingular.runs.jobs import Attacked, Certified, dataset
from nonsingular.runs.manifest import differences, signed_by
from nonsingular.runs.presets import NAMES
from nonsingular.runs.reproduce import judged
from nonsingular.runs.verification import PAIRS, SURVIVORS, Verification, short
from nonsingular.runs.verify_again import attack_survivors, count_again, prove_again, prove_fronts
from nonsingular.runs.verify_outcomes import check_perturbations
from nonsingular.runs.whereabouts import AS_SAID, Whereabouts, seen_from
from nonsingular.settings import CertifySettings, EvaluateSettings, ReproduceSettings, checked, with_new_names
from nonsingular.untrusted import read_config


@dataclass(frozen=True)
class Effort:
    """How closely a run is looked at.  pairs: certified pairs (example, cell) proven again, None for all.  attacks: survivors
    attacked again."""

    pairs: int | None = PAIRS
    attacks: int = SURVIVORS


def verify_run(
    run: Path, effort: Effort = Effort(), where: Whereabouts = AS_SAID, public_key: Path | None = None
) -> Verification:  # fmt: skip
    """Derives a finished run of evaluate (also with --fault), certify or reproduce (demo) again.

    effort: examples recorded as surviving are attacked again from nothing, each in the largest ball where it survives; in scopes
        batch and dataset two cells of one group, unless it is 0.  An attack that found nothing leaves no trace to derive again:
        only this exposes a run whose perturbations were weakened or left out everywhere.
    where: paths of the settings are looked up from here, from the run and from the folders above it.  A model that is code
        (file.py:function) runs: it must be named here.
    public_key: the key that must have signed the manifest.
    Raises InvalidInput for a run that is not finished, or damaged, or whose model or data cannot be found.
    Cost: a few passes for every stored perturbation, the pages, and the attacks and certificates asked for.  Memory: that of
    the run with one worker.
    """
    if (run / CAMPAIGN).exists():
        return verify_campaign(run, lambda settings: where.located(settings, run, f"nonsingular verify {run}"), public_key)
    found = Verification()
    results, values = read_results(run), read_config(run / CONFIG)
    found.judge(differences(run), "every file has the hash that the manifest states")
    if public_key is not None:
        found.judge([] if signed_by(run, public_key) else [f"the signature is not of {public_key}"], f"signed by {public_key}")
    if "recipes" in values:
        settings = checked(ReproduceSettings, values)
        again = _reproduced(settings, run, results, found, where)
    else:
        settings = checked(EvaluateSettings if "scope" in values else CertifySettings, values)
        again = _one(settings, run, results, found, where, effort)
    if with_new_names(values) != json.loads(settings.model_dump_json()):
        found.wrong.append(f"{CONFIG} is not as a run writes it")
    for part in ("environment", "command"):
        found.open.append(f"{part}: as the run states it")
    if again is not None:
        said = {**results, "config": with_new_names(results.get("config"))}
        unequal = list(_unequal(said, json.loads(json.dumps(again)), ""))
        found.judge(
            [f"{RESULTS}: {path} is {short(a)}, derived again {short(b)}" for path, a, b in unequal],
            f"{RESULTS}: every outcome, accuracy, interval and area follows from the log, the settings, the model and the data",
        )
        if unequal:
            found.open.append("pages and pictures: not compared, since the records differ")
            return found
    _pages(results, run, found)
    return found


# --- the records ----------------------------------------------------------------------------------------------------------

_STATED = {"environment", "command", "masking", "seconds", "wall_seconds", "fronts"}
"""Fields that are not derived again; times are not."""
_NEWER = {"median"}
"""Fields that runs of the first release lack."""


def _unequal(said: Any, again: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(said, dict) and isinstance(again, dict):
        a, b = dict[str, Any](said), dict[str, Any](again)
        for key in sorted((a.keys() | b.keys()) - _STATED - (_NEWER - a.keys())):
            yield from _unequal(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(said, list) and isinstance(again, list) and len(said) == len(again):
        for i, (p, q) in enumerate(zip(said, again, strict=True)):
            yield from _unequal(p, q, f"{path}[{i}]")
    elif said != again:
        yield path, said, again


def _one(
    settings: EvaluateSettings | CertifySettings, run: Path, results: Mapping[str, Any], found: Verification,
    where: Whereabouts, effort: Effort,
) -> dict[str, Any] | None:  # fmt: skip
    here = where.located(settings, run, f"nonsingular verify {run}")
    model = next(iter(results["models"].values()))
    job = _job(here, model["surfaces"][0])
    about = [s["about"] for m in results["models"].values() for s in m["surfaces"]]
    stated = {a.get(k) for a in about for k in ("model_sha256", "data_sha256")}
    changed = [
        f"the {k.partition('_')[0]} is another one than {RESULTS} states" for k, v in job.case.hashes.items() if v not in stated
    ]
    found.judge(changed, "model and data have the hashes that the results state")
    log = run / EVENTS
    job.case = replace(job.case, name=settings.label)
    if not any(True for _ in Log(log)):
        found.wrong.append(f"{EVENTS} is missing or empty")
        return None
    try:
        again_surface = job.surface(from_log(log))
    except Unconfirmed as e:
        found.wrong.append(str(e))
        return None
    except SoundnessError as e:
        found.wrong.append(f"{EVENTS}: {_contradiction(e)}")
        return None
    if isinstance(job, Attacked):
        check_perturbations(job, run, again_surface, found)
    circumstances = Circumstances(results.get("environment", {}), results["command"])
    again = record(job, again_surface, settings, log, circumstances)
    if isinstance(job, Attacked):
        attack_survivors(job, again_surface, found, effort.attacks)
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
        prove_again(job, proven.outcomes, found, effort.pairs)
        if isinstance(job, Attacked) and again_surface.shared is not None:
            count_again(job, again_surface, found, effort.pairs)
    if isinstance(job, Certified) and "fronts" in model:
        prove_fronts(job, model["fronts"], found, effort.pairs)
    return again


def _job(settings: EvaluateSettings | CertifySettings, said: Mapping[str, Any]) -> Attacked | Certified:
    """said: the surface that the results state.  Runs of the first release have no shared certificates."""
    if isinstance(settings, CertifySettings):
        return Certified(settings)
    job = Attacked(settings)
    job.shared = job.shared and "shared" in said
    return job


def _contradiction(e: SoundnessError) -> str:
    at = f"at ({e.eps_x:g}, {e.eps_w:g})"
    if isinstance(e, SharedSoundnessError):
        return f"{at} one W' breaks {e.attacked:g} of the examples from {e.span[0]}, certified are {e.certified:g} at most"
    return f"example {e.example} is certified and lost {at}"


# --- the whole paper ------------------------------------------------------------------------------------------------------


def _reproduced(
    settings: ReproduceSettings, run: Path, results: Mapping[str, Any], found: Verification, where: Whereabouts
) -> dict[str, Any] | None:  # fmt: skip
    """Every surface from its log, and the claims from these.  `reproduce` keeps no perturbations."""
    seeds = list(range(settings.first_seed, settings.first_seed + settings.seeds))
    folder_of_data, found_at = where.data_dir or seen_from(settings.data_dir, run), where.data or seen_from(settings.data, run)
    data_dir = folder_of_data and Path(folder_of_data)
    data, models = dataset(found_at, data_dir), dict[str, Any]()
    for name, recipe in settings.recipes.items():
        surfaces: list[Surface] = []
        for seed in seeds:
            folder = run / "models" / f"{name}-seed{seed}"
            if not (folder / EVENTS).exists():
                found.wrong.append(f"models/{name}-seed{seed}/{EVENTS} is missing")
                return None
            asked = EvaluateSettings(
                model=str(folder), data=found_at, data_dir=data_dir, split=settings.split, limit=settings.limit,
                eps_x=settings.eps_x, eps_w=settings.eps_w, scope=settings.scope, attack=settings.attack, device=settings.device,
            )  # fmt: skip
            trained = load_run(folder)[1]
            if (trained.recipe, trained.network, trained.seed) != (recipe, settings.network, seed):
                found.wrong.append(f"models/{name}-seed{seed} was trained with other settings than {CONFIG} says")
            try:
                surfaces.append(replace(Attacked(asked).surface(from_log(folder / EVENTS)), model=name))
            except Unconfirmed as e:
                found.wrong.append(f"{name}, seed {seed}: {e}")
                return None
        models[name] = (NAMES.get(name, name), recipe.model_dump(), surfaces)
    again = assemble(models, seeds, data, settings, Circumstances(results.get("environment", {}), results["command"]))
    if judged(settings):
        again["claims"] = judge(again["models"])
    found.open.append("outcomes: reproduce keeps no perturbations, so they are those of the log and no more")
    found.open.append("training: the weights are as stored, and were not trained again")
    return again


# --- pages ----------------------------------------------------------------------------------------------------------------


AGED = " (if an older version drew it, `nonsingular report RUN` draws it again)"


def _pages(results: Mapping[str, Any], run: Path, found: Verification) -> None:
    """Pictures, tables and pages are what these records are drawn as, byte by byte."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = write(results, Path(scratch))
        wrong = [
            f"{name} {f'does not show {RESULTS}{AGED}' if (run / name).is_file() else 'is missing'}"
            for name, path in sorted(drawn.items())
            if not (run / name).is_file() or (run / name).read_bytes() != path.read_bytes()
        ]
    found.judge(wrong, f"{', '.join(sorted(drawn))} are what {RESULTS} is drawn as")
