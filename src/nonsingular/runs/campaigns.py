"""campaigns.py - settings -> run directory: a network on simulated chips; and such a run derived again.

events.jsonl holds what each chip did, campaign.json the accuracies, report.html the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nonsingular.catalog import FAULTS
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.campaign import Line, Trial, chip_alone, held, run, summary, trial_of
from nonsingular.evaluation.problem import attack_of
from nonsingular.evaluation.protection import advise
from nonsingular.faults.analog import PhaseChange, ReRAM
from nonsingular.faults.bit_errors import BitErrors
from nonsingular.faults.chips import CampaignSettings
from nonsingular.faults.fault import Fault, InOrder
from nonsingular.faults.formats import storage_of
from nonsingular.network.calling import threads
from nonsingular.network.preconditions import warn
from nonsingular.report.campaign import campaign_page
from nonsingular.results.campaign import Campaign
from nonsingular.results.files import write_atomic, write_json
from nonsingular.results.protection import Protection
from nonsingular.results.surface import CONFIG, EVENTS
from nonsingular.runs.directory import check_free, claimed, environment
from nonsingular.runs.engine import Workplace
from nonsingular.runs.jobs import Job, Report
from nonsingular.runs.manifest import differences, seal, signed_by
from nonsingular.runs.verification import Verification
from nonsingular.settings import checked
from nonsingular.untrusted import read_config

CAMPAIGN, PAGE = "campaign.json", "report.html"
FORMAT = 1
RATES = (0.0, 1e-4, 1e-3, 1e-2)
AGAIN = 2
"""Chips that `verify` simulates again."""


class Simulated(Job):
    """A job of simulated chips."""

    def __init__(self, settings: CampaignSettings) -> None:
        super().__init__(settings)  # pyright: ignore[reportArgumentType]  # of the same fields
        asked = trial_of(fault_of(settings), rates_of(settings), self.grid.eps_x, attack_of(settings.attack))
        self.trial: Trial = replace(asked, draws=settings.draws, seed=settings.seed, domain=self.data.domain)
        self.asked = settings

    def submitted(self, pool: Executor, seeds: Sequence[int]) -> Iterator[Line]:
        """Chips done in `pool`, as they finish."""
        text = self.asked.model_dump_json()
        for future in as_completed([pool.submit(_chip, text, self.case.hashes["model_sha256"], seed) for seed in seeds]):
            yield future.result()


def fault_of(settings: CampaignSettings) -> Fault:
    """The fault that settings name.  Raises InvalidInput where format and fault contradict each other."""
    if settings.fault in (PhaseChange.name, ReRAM.name):
        analog = _analog(settings)
        return analog if settings.stored is None else InOrder((storage_of(settings.stored, settings.moves), analog))
    storage = storage_of(settings.stored or "int8", settings.moves)
    if settings.fault != BitErrors.name:
        if storage.name == settings.fault:
            return storage
        fault = FAULTS[settings.fault]()
        if settings.stored is not None:
            raise InvalidInput(
                f"--stored {settings.stored} is not the format of the fault {settings.fault}; leave out one of both"
            )
        return fault
    protection = None if settings.protection == "none" else settings.protection
    return BitErrors(0.0, storage, settings.becomes, None, settings.along, protection)


def _analog(settings: CampaignSettings) -> Fault:
    given = {"seconds": settings.age, "g_max": settings.g_max}
    given = {name: value for name, value in given.items() if value is not None}
    if settings.fault == ReRAM.name:
        return ReRAM(**given, moves=settings.moves)
    return PhaseChange(
        **given, compensated=settings.drift == "compensated", reads=settings.reads == "noisy", moves=settings.moves
    )  # fmt: skip


def rates_of(settings: CampaignSettings) -> tuple[float, ...] | None:
    return (settings.rates or RATES) if settings.fault == BitErrors.name else None


@lru_cache(maxsize=1)
def _job(settings: str, model_sha256: str) -> Simulated:
    job = Simulated(CampaignSettings.model_validate_json(settings))
    if job.case.hashes["model_sha256"] != model_sha256:
        raise InvalidInput(f"{job.asked.model} returns other weights at each call; give --weights with a safetensors file")
    return job


def _chip(settings: str, model_sha256: str, seed: int) -> Line:
    job = _job(settings, model_sha256)
    return chip_alone(job.case, job.trial, seed)


def campaign_run(
    settings: CampaignSettings, out: Path, workplace: Workplace, report: Report = lambda what, n: None, command: str = ""
) -> dict[str, Any]:
    """The campaign, also written to `out`.  Chips that are there already are not simulated again."""
    with threads(1):
        job = Simulated(settings)
    check_free(out, settings)
    surroundings = environment()
    with workplace.open() as pool, claimed(out, settings), threads(1):
        warn(job.case.doubts)

        def lines(seeds: Sequence[int]) -> Iterator[Line]:
            report("chips", settings.chips - len(seeds))
            for line in _lines(job, pool, seeds):
                yield line
                report("chips", 1)

        found = run(job.case, job.trial, settings.chips, out / EVENTS, lines)
        results = _record(job, found, command, surroundings)
        write_json(out / CAMPAIGN, results)
        write_page(results, out)
        seal(out)
    return results


def _lines(job: Simulated, pool: Executor | None, seeds: Sequence[int]) -> Iterator[Line]:
    if pool is not None:
        return job.submitted(pool, seeds)
    return (chip_alone(job.case, job.trial, seed) for seed in seeds)


def _record(job: Simulated, found: Campaign, command: str, surroundings: dict[str, Any]) -> dict[str, Any]:
    return {
        **({"protection": _protection(job, found).to_dict()} if job.asked.advice else {}),
        "format": FORMAT, "command": command, "label": job.asked.label, "required": job.asked.required,
        "data": {"name": job.data.name, "split": job.asked.split, "n": found.n, "sha256": job.case.hashes["data_sha256"]},
        "campaign": found.to_dict(), "config": json.loads(job.asked.model_dump_json(exclude={"data_dir"})),
        "environment": surroundings,
    }  # fmt: skip


def _protection(job: Simulated, found: Campaign) -> Protection:
    """What to protect, at the rate whose mean accuracy is nearest to the middle between chance and none."""
    middle = (found.clean + 1 / job.case.clean.shape[1]) / 2
    mean = found.mean()[:, 0]
    chosen = min((i for i, rate in enumerate(found.rates) if rate), key=lambda i: abs(mean[i] - middle), default=None)
    fault = job.trial.at(found.rates[-1] if chosen is None else found.rates[chosen])
    assert isinstance(fault, BitErrors), "the settings refuse others"
    seeds = range(job.asked.seed, job.asked.seed + job.asked.chips)
    return advise(job.case, fault, seeds, job.asked.advice, job.trial.domain)


def write_page(results: dict[str, Any], out: Path) -> Path:
    """Writes the page of a campaign into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / PAGE, campaign_page(results))
    return out / PAGE


def read_campaign(run: Path) -> dict[str, Any]:
    """campaign.json of a finished run.  Raises InvalidInput if it is damaged."""
    try:
        results: Any = json.loads((run / CAMPAIGN).read_text(encoding="utf-8"))
        if results["format"] != FORMAT:
            raise ValueError(f"format {results['format']}, not {FORMAT}")
        for part, kind in (("label", str), ("data", dict), ("command", str), ("environment", dict), ("config", dict)):
            if not isinstance(results[part], kind):
                raise ValueError(f"{part} is a {type(results[part]).__name__}")
        if not isinstance(results["data"]["name"], str) or not isinstance(results["required"], float | int | None):
            raise ValueError("data or required")
        Campaign.from_dict(results["campaign"])
        if "protection" in results:
            Protection.from_dict(results["protection"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise InvalidInput(f"{run / CAMPAIGN} cannot be read as a campaign ({e!r})") from None
    return results


def verify_campaign(run: Path, moved: Callable[[CampaignSettings], CampaignSettings], public_key: Path | None) -> Verification:
    """Derives a finished campaign again: hashes, accuracies from the log, the page, and AGAIN of its chips, simulated anew.

    moved: says where model and data lie now.
    """
    found, results = Verification(), read_campaign(run)
    found.judge(differences(run), "every file has the hash that the manifest states")
    if public_key is not None:
        found.judge([] if signed_by(run, public_key) else [f"the signature is not of {public_key}"], f"signed by {public_key}")
    stated = checked(CampaignSettings, read_config(run / CONFIG))
    job = Simulated(moved(stated))
    job.asked = stated
    done = {line.seed: line for line in held(job.case, job.trial, run / EVENTS)}
    seeds = [stated.seed + k for k in range(stated.chips)]
    if lost := [seed for seed in seeds if seed not in done]:
        found.wrong.append(f"{EVENTS} holds no chip {lost[0]} of this model, data and settings")
        return found
    again = _record(job, summary(job.case, job.trial, [done[seed] for seed in seeds]), results["command"], results["environment"])
    same = json.dumps(again, sort_keys=True) == json.dumps(results, sort_keys=True)
    found.judge([] if same else [f"{CAMPAIGN} does not follow from the log"], "every accuracy follows from the log")
    page = (run / PAGE).read_text(encoding="utf-8") if (run / PAGE).is_file() else ""
    found.judge([] if page == campaign_page(results) else [f"{PAGE} is not the page of {CAMPAIGN}"], "the page shows the record")
    chosen = seeds[:: max(1, len(seeds) // AGAIN)][:AGAIN]
    wrong: list[str] = []
    for seed in chosen:
        line, held_line = chip_alone(job.case, job.trial, seed), done[seed]
        if not ((line.right == held_line.right).all() and (line.counts == held_line.counts).all()):
            wrong.append(f"chip {seed} does not do again what the log says")
    found.judge(wrong, f"{len(chosen)} of {len(seeds)} chips, simulated again")
    found.open.append(f"{len(seeds) - len(chosen)} chips: as the log states them")
    return found
