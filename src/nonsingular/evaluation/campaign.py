"""campaign.py - a network on simulated chips: error rate on one axis, input radius on the other."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonsingular.catalog import FAULTS, Attack, known
from nonsingular.data.datasets import as_tensors
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.problem import Case, attack_of
from nonsingular.faults.bit_errors import BitErrors
from nonsingular.faults.fault import Fault
from nonsingular.network.calling import logits_at
from nonsingular.network.calling import threads as use_threads
from nonsingular.network.heads import classifier
from nonsingular.network.margins import is_correct
from nonsingular.network.network import Network, twin
from nonsingular.network.preconditions import check_inputs
from nonsingular.results.campaign import COUNTS, Campaign
from nonsingular.results.files import Log
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation

Outcome = NDArray[np.bool_]
KEPT = "campaign"
"""The key under which a log holds its lines."""


@dataclass(frozen=True)
class Trial:
    """What is done to each chip.

    rates: of a fault with a field `rate`, rising; (None,) for others.  eps_x: rising.  attack: on the inputs.
    draws: chips over whose mean logits inputs are chosen before the fault is known; 0: this is not asked.  seed: of the first
    chip.  domain: range of the inputs.
    """

    fault: Fault
    rates: tuple[float | None, ...]
    eps_x: tuple[float, ...]
    attack: Attack
    draws: int = 0
    seed: int = 0
    domain: tuple[float, float] | None = (0.0, 1.0)

    def at(self, rate: float | None) -> Fault:
        """The fault at this rate."""
        return self.fault if rate is None else replace(self.fault, rate=rate)  # pyright: ignore[reportCallIssue]

    def ball(self, eps_x: float) -> JointBall:
        return JointBall(eps_x, 0.0, self.domain)

    def describe(self) -> dict[str, Any]:
        """Everything by name, for records: JSON."""
        return {
            "fault": self.fault.describe(), "rates": list(self.rates), "eps_x": list(self.eps_x), "attack": self.attack.name,
            "draws": self.draws, "seed": self.seed, "domain": self.domain,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Line:
    """What one chip did.

    seed: of the chip.  right, finite, before: (rates, radii, n); before is None if not asked.
    counts: (rates, COUNTS).
    """

    seed: int
    right: Outcome
    finite: Outcome
    before: Outcome | None
    counts: NDArray[np.int64]


Lines = Callable[[Sequence[int]], Iterable[Line]]
"""Seeds -> what these chips did, in any order."""


def campaign(
    model: nn.Module, data: Any, *, fault: str | Fault = "bit-error", rates: Sequence[float] | None = None, chips: int = 50,
    eps_x: float | Sequence[float] = 0.0, domain: tuple[float, float] | None = (0.0, 1.0),
    attack: str | Attack | Callable[..., Any] = "apgd", draws: int = 0, seed: int = 0, log: Path | None = None, threads: int = 1,
) -> Campaign:  # fmt: skip
    """Accuracy of `model` on simulated chips over error rates and input radii.

    data: as in `evaluate`.  fault: a fault, or a name of the catalog with its defaults.  rates: for a fault with a `rate`, such
        as `BitErrors`, in rising order; None for others.
    chips: each has a seed, `seed` + 0, 1, ...; at all rates of one chip the same, so that its errors are nested.
    eps_x: input radii, in rising order.  At a radius above 0 every chip is attacked with its fault known; an example that is
        lost at a smaller radius stays lost.  draws: if above 0, inputs are also chosen before the fault is known, against the
        mean logits of so many other chips, and put to every chip.
    attack: an attack on inputs of the catalog, or your own.  log: file to which each finished chip is appended; what it holds for
        this model, data and settings is not run again.  threads: of torch.
    Returns a Campaign: measured accuracies of these chips, and no bound for any other; with an attack, upper bounds of what is
    robust.  Raises InvalidInput for unusable settings.  Cost: chips x rates x radii attacks.
    """
    trial = trial_of(fault, rates, eps_x, attack_of(attack))
    trial = replace(trial, draws=_whole("draws", draws, 0), seed=_whole("seed", seed, 0), domain=domain)
    x, y = as_tensors(data)
    ball = trial.ball(trial.eps_x[-1])
    network = classifier(model, x, ball)
    case = Case(network, x, y.long(), doubts=(*network.told, *check_inputs(network, x, y, ball)))
    with use_threads(threads):
        return run(case, trial, _whole("chips", chips, 1), log)


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{name} is {value!r}; give a whole number from {least}")
    return value


def trial_of(
    fault: str | Fault, rates: Sequence[float] | None, eps_x: float | Sequence[float], attack: Attack
) -> Trial:  # fmt: skip
    """The trial that a user asks for, checked."""
    if isinstance(fault, str):
        fault = FAULTS[known(FAULTS, fault, "fault")]()
    if not isinstance(fault, Fault):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user gives
        raise InvalidInput(f"fault is {fault!r}; give an ns.Fault, such as ns.BitErrors(), or one of {', '.join(FAULTS)}")
    if not hasattr(fault, "rate") and rates is not None:
        raise InvalidInput(f"the fault '{fault.name}' has no rate; leave out rates")
    if hasattr(fault, "rate") and rates is None:
        rates = (fault.rate,)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    radii = (float(eps_x),) if isinstance(eps_x, int | float) else tuple(float(e) for e in eps_x)
    for name, values in (("rates", rates), ("eps_x", radii)):
        if values is not None and (not len(values) or any(b <= a for a, b in pairwise(values))):
            raise InvalidInput(f"{name} is {list(values)}; give one number or more, in rising order")
    if "inputs" not in attack.moves and radii[-1] > 0:
        raise InvalidInput(f"the attack '{attack.name}' does not move inputs; choose another, such as apgd")
    trial = Trial(fault, (None,) if rates is None else tuple(float(r) for r in rates), radii, attack)
    for rate in trial.rates:
        trial.at(rate)  # refuses what is no rate
    return trial


def run(case: Case, trial: Trial, chips: int, log: Path | None = None, lines: Lines | None = None) -> Campaign:
    """The campaign, chip by chip.  lines: does the chips elsewhere."""
    seeds = tuple(trial.seed + k for k in range(chips))
    done = {line.seed: line for line in held(case, trial, log) if line.seed in seeds}
    left = [seed for seed in seeds if seed not in done]
    key = key_of(case, trial)
    for line in lines(left) if lines else (chip_alone(case, trial, seed) for seed in left):
        done[line.seed] = line
        if log is not None:
            Log(log).append({KEPT: key, **_told(line)})
    return summary(case, trial, [done[seed] for seed in seeds])


def summary(case: Case, trial: Trial, lines: Sequence[Line]) -> Campaign:
    """The campaign that these chips are."""
    right, finite = (np.stack([getattr(line, name) for line in lines], 2) for name in ("right", "finite"))  # (R, E, C, n)
    before = None if not trial.draws else np.stack([line.before for line in lines if line.before is not None], 2)
    counts = np.stack([line.counts for line in lines], 1)  # (R, C, counts)
    about = {**trial.describe(), **case.hashes, "doubts": list(case.doubts), "dtype": str(case.x.dtype)}
    return Campaign(
        trial.rates, trial.eps_x, tuple(line.seed for line in lines), right.mean(3),
        None if before is None else before.mean(3), right.all(2).mean(2), (~right & finite).mean(3),
        {name: counts[..., k] for k, name in enumerate(COUNTS)}, case.clean_accuracy, len(case), about,
    )  # fmt: skip


# --- one chip -----------------------------------------------------------------------------------------------------------------


def chip_alone(case: Case, trial: Trial, seed: int) -> Line:
    """What one chip does at all rates and radii."""
    shape = len(trial.rates), len(trial.eps_x), len(case)
    right, finite = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    before = np.zeros(shape, dtype=bool) if trial.draws else None
    counts = np.zeros((shape[0], len(COUNTS)), dtype=np.int64)
    for i, rate in enumerate(trial.rates):
        weights, counts[i] = realised(case.network, trial.at(rate), seed)
        with case.network.lent(weights) as chip:
            right[i], finite[i] = _attacked(case, trial, chip)
            if before is not None:
                for j, x in enumerate(inputs_before(case, trial, rate)):
                    before[i, j] = right_on(chip, x, case.y)[0]
    return Line(seed, right, finite, before, counts)


def realised(network: nn.Module, fault: Fault, seed: int) -> tuple[dict[str, Tensor], list[int]]:
    """The weights of the chip with this seed, and its counts; 0 where the fault has none."""
    params = {name: p.detach() for name, p in network.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    if isinstance(fault, BitErrors):
        chip = fault.chip(params, generator)
        return chip.weights, [getattr(chip, name) for name in COUNTS]
    return fault(params, generator), [0] * len(COUNTS)


def right_on(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Outcome, Outcome]:
    """(n,) which examples are right, and whose logits are finite."""
    logits = logits_at(model, Perturbation(x))
    return is_correct(logits, y).cpu().numpy(), torch.isfinite(logits).all(1).cpu().numpy()


def _attacked(case: Case, trial: Trial, chip: nn.Module) -> tuple[Outcome, Outcome]:
    """(radii, n) which examples are right on a chip, and whose logits were finite where they last counted."""
    right, finite = (np.tile(t, (len(trial.eps_x), 1)) for t in right_on(chip, case.x, case.y))
    for j, eps_x in enumerate(trial.eps_x):
        if j:
            right[j], finite[j] = right[j - 1], finite[j - 1]
        alive = np.flatnonzero(right[j] & finite[j])
        if not eps_x or not len(alive):
            continue
        some = torch.from_numpy(alive).to(case.x.device)
        x, y = case.x[some], case.y[some]
        point = trial.attack(chip, x, y, trial.ball(eps_x), scope="sample").check(chip, x, trial.ball(eps_x))
        right[j, alive], finite[j, alive] = right_on(chip, point.x, y)
    return right, finite


class _Mean(nn.Module):
    """The mean logits of several chips, (B, K)."""

    def __init__(self, chips: Iterable[nn.Module]) -> None:
        super().__init__()
        self.chips = nn.ModuleList(chips)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([chip(x) for chip in self.chips]).mean(0)


OTHERS = 2**31
"""The first seed of the chips over which inputs are chosen before the fault is known."""


def inputs_before(case: Case, trial: Trial, rate: float | None) -> list[Tensor]:
    """(n, *input) for each radius: inputs against the mean logits of other chips.  Found once for a network."""

    def find() -> list[Tensor]:
        made: list[nn.Module] = []
        for k in range(trial.draws):
            with case.network.lent(realised(case.network, trial.at(rate), OTHERS + k)[0]) as chip:
                made.append(Network(twin(chip)))
        mean, found = _Mean(made).eval(), list[Tensor]()
        for eps_x in trial.eps_x:
            ball = trial.ball(eps_x)
            point = trial.attack(mean, case.x, case.y, ball, scope="sample").check(mean, case.x, ball) if eps_x else None
            found.append(case.x if point is None else point.x)
        return found

    return case.network.once((KEPT, key_of(case, trial), rate), find)


# --- the log ------------------------------------------------------------------------------------------------------------------


def key_of(case: Case, trial: Trial) -> str:
    """A hash of all that a chip depends on: a log's chips are reused only under the same key."""
    told = [trial.describe(), case.hashes, case.function]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _told(line: Line) -> dict[str, Any]:
    def packed(bits: Outcome | None) -> str | None:
        return None if bits is None else base64.b64encode(np.packbits(bits).tobytes()).decode()

    outcomes = {name: packed(getattr(line, name)) for name in ("right", "finite", "before")}
    return {"chip": line.seed, "counts": line.counts.tolist(), **outcomes}


def held(case: Case, trial: Trial, log: Path | None) -> Iterator[Line]:
    """The chips that a log holds for this trial.  Raises InvalidInput for a line that is not one of these."""
    if log is None:
        return
    key, shape = key_of(case, trial), (len(trial.rates), len(trial.eps_x), len(case))
    for entry in Log(log):
        if entry.get(KEPT) == key:
            yield _line(entry, shape, log)


def _line(entry: Mapping[str, Any], shape: tuple[int, int, int], log: Path) -> Line:
    size = int(np.prod(shape))

    def unpacked(text: str | None) -> Outcome | None:
        if text is None:
            return None
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8))
        if len(bits) != -(-size // 8) * 8:
            raise ValueError("outcomes of another size")
        return bits[:size].astype(bool).reshape(shape)

    try:
        right, finite, before = (unpacked(entry[name]) for name in ("right", "finite", "before"))
        if right is None or finite is None:
            raise ValueError("a chip without outcomes")
        counts = np.array(entry["counts"], dtype=np.int64).reshape(shape[0], len(COUNTS))
        return Line(int(entry["chip"]), right, finite, before, counts)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise InvalidInput(f"{log} holds no chips as a campaign writes them ({e!r}); delete it and run again") from None
