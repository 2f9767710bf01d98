"""protection.py - what to protect in a memory that fails: each part protected in turn, and measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from nonsingular.attacks.flips import flip_attack
from nonsingular.data.datasets import as_tensors
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.campaign import realised, right_on
from nonsingular.evaluation.problem import Case
from nonsingular.faults.bit_errors import BitErrors
from nonsingular.faults.fault import whole
from nonsingular.faults.uniform import UniformRounding
from nonsingular.network.calling import threads as use_threads
from nonsingular.network.heads import classifier
from nonsingular.network.preconditions import check_inputs
from nonsingular.results.protection import Bit, Option, Protection
from nonsingular.threat.ball import JointBall

HIGHEST = (1, 2)
"""How many of the highest bits of every word are protected."""
CLIPS = (0.5, 0.25)
"""Where weights are clipped, in parts of the largest one of all tensors."""


def protection(
    model: nn.Module, data: Any, *, fault: BitErrors | None = None, chips: int = 20, bits: int = 12,
    domain: tuple[float, float] | None = (0.0, 1.0), seed: int = 0, threads: int = 1,
) -> Protection:  # fmt: skip
    """What it buys to protect a layer, the highest bits or a few single bits, or to clip weights: measured, not bounded.

    data: as in `evaluate`.  fault: random bit errors, with their rate and format; by default BitErrors().  chips: simulated for
        each option, with the seeds `seed` + 0, 1, ...; the errors of what is not protected are the same in all options.
    bits: how many single bits an attacker may flip (`flip_attack`, one device, these examples); then the attack is made again
        with these bits protected.  0: not asked.  domain: of the inputs, which stay as they are.  threads: of torch.
    Layers are protected as a memory that does not fail; codes cost check bits and correct less (`BitErrors.protection`).
    Weights are clipped only where they are stored as uniform levels.
    Raises InvalidInput for invalid settings.  Cost: chips x (tensors + 5) passes, and two flip attacks.
    """
    fault = BitErrors() if fault is None else fault
    if not isinstance(fault, BitErrors):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user gives
        raise InvalidInput(f"fault is {fault!r}; give random bit errors, such as ns.BitErrors(1e-3)")
    whole("chips", chips, 1, 100_000)
    whole("seed", seed, 0, 2**31 - 1)
    x, y = as_tensors(data)
    ball = JointBall(0.0, 0.0, domain)
    network = classifier(model, x, ball)
    case = Case(network, x, y.long(), doubts=(*network.told, *check_inputs(network, x, y, ball)))
    with use_threads(threads):
        return advise(case, fault, range(seed, seed + chips), bits, domain)


def advise(case: Case, fault: BitErrors, seeds: range, bits: int, domain: tuple[float, float] | None) -> Protection:
    """`protection` on checked inputs."""
    whole("bits", bits, 0, 1000)
    options = [_measured(case, one, seeds, *about) for one, about in _options(case, fault)]
    found: tuple[Bit, ...] = ()
    after = None
    if bits:
        how = {"flips": bits, "storage": fault.storage, "beam": 1, "exchange": False, "domain": domain}
        first = flip_attack(case.network, case.x, case.y, **how)  # pyright: ignore[reportArgumentType]
        again = flip_attack(case.network, case.x, case.y, spared=first.flips, **how)  # pyright: ignore[reportArgumentType]
        found = tuple(Bit(f.name, f.index, f.bit, a) for f, a in zip(first.flips, first.accuracy[1:], strict=True))
        after = again.accuracy[-1]
    return Protection(fault.rate, len(seeds), tuple(options), found, after, options[0].still)


def _options(case: Case, fault: BitErrors) -> list[tuple[BitErrors, tuple[str, str, float]]]:
    """(the fault with something protected, (kind, what, share of the stored bits))."""
    weights = {name: p.detach() for name, p in case.network.named_parameters()}
    stored = fault.storage.words(weights)
    size = {name: words.bits * words.word.numel() for name, words in stored.items()}
    every, width = max(1, sum(size.values())), max((words.bits for words in stored.values()), default=1)
    found = [(fault, ("none", "", 0.0))]
    found += [(replace(fault, safe=(*fault.safe, name)), ("layer", name, n / every)) for name, n in size.items()]
    able = set(range(width) if fault.positions is None else fault.positions)
    for k in (k for k in HIGHEST if k < width):
        left = tuple(sorted(able - set(range(width - k, width))))
        found.append((replace(fault, positions=left), ("bits", str(k), k / width)))
    largest = max((weights[name].abs().max().item() for name in stored if weights[name].numel()), default=0.0)
    if isinstance(fault.storage, UniformRounding) and largest > 0:
        for part in CLIPS:
            clipped = replace(fault.storage, w_max=part * largest)
            found.append((replace(fault, storage=clipped), ("clip", f"{part * largest:.4g}", 0.0)))
    return found


def _measured(case: Case, fault: BitErrors, seeds: range, kind: str, what: str, share: float) -> Option:
    def accuracy(rate: float, seed: int) -> float:
        with case.network.lent(realised(case.network, replace(fault, rate=rate), seed)[0]) as chip:
            return float(right_on(chip, case.x, case.y)[0].mean())

    found = np.array([accuracy(fault.rate, seed) for seed in seeds])
    return Option(kind, what, share, accuracy(0.0, seeds[0]), float(found.mean()), float(found.min()))
