"""bit_errors.py - stored bits that are read wrong at random.  E.g. Stutz et al., arXiv:2006.13977."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Generator, Tensor

from nonsingular.errors import InvalidInput
from nonsingular.faults.codes import PROTECTIONS, Protection, read
from nonsingular.faults.fault import Fault, Storage, Weights
from nonsingular.faults.uniform import UniformRounding
from nonsingular.faults.words import Stored

Becomes = Literal["flipped", "zero", "one"]
Along = Literal["cell", "row", "column"]


@dataclass(frozen=True, eq=False)
class Chip:
    """What one simulated chip holds.

    weights: values as they are read.  words: what is read, by name.  bits: data bits that are stored.  errors: those that are
    wrong as stored.  corrected: words that were wrong as stored and are read right.  detected: words that are known to be wrong
    and were replaced.  silent: words that are read wrong, and nothing says so.  not_finite: values that are read as NaN or
    infinite, which a device notices where it looks; they count among `silent`.
    """

    weights: dict[str, Tensor]
    words: Mapping[str, Stored]
    bits: int
    errors: int
    corrected: int
    detected: int
    silent: int
    not_finite: int


@dataclass(frozen=True)
class BitErrors(Fault):
    """Every stored bit is in error with probability `rate`, independently of the others.

    rate: 0 to 1.  storage: the format of the words (UniformRounding, FixedPoint, FloatFormat).
    becomes: a bit in error is read "flipped", or is stuck at "zero" or "one" (and then wrong in about half of the cases).
    positions: only these bits can be in error, 0 the least significant; None: all.
    along: "cell" draws for each bit; "row" once for each row (first dimension), whose bits are then all in error; "column" once
        for each bit of each column (the other dimensions), which is then in error in all rows: a bit line.
    protection: None, "parity", "secded" or "checksum" (faults/codes.py).  Check bits of the first two fail like data bits.
    detected: a word that is known to be wrong is read as "zero", or "restored" from a safe copy.
    safe: names of tensors whose memory does not fail.
    Nested: from one state of the generator, the errors at a lower rate are among those at a higher one.
    Raises InvalidInput for invalid settings, and without a generator.  Cost: one draw for each bit.
    """

    rate: float = 0.01
    storage: Storage = UniformRounding()  # noqa: RUF009  # a frozen value
    becomes: Becomes = "flipped"
    positions: tuple[int, ...] | None = None
    along: Along = "cell"
    protection: Protection | None = None
    detected: Literal["zero", "restored"] = "zero"
    safe: tuple[str, ...] = ()
    name: ClassVar[str] = "bit-error"

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not 0 <= self.rate <= 1:
            raise InvalidInput(f"rate is {self.rate!r}; give the probability that a bit is in error, from 0 to 1")
        if not isinstance(self.storage, Storage):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user gives
            raise InvalidInput(f"storage is {self.storage!r}; give a format of words, such as ns.UniformRounding(bits=8)")
        for name, names in (
            ("becomes", get_args(Becomes)), ("along", get_args(Along)), ("protection", (None, *PROTECTIONS)),
            ("detected", ("zero", "restored")),
        ):  # fmt: skip
            if (value := getattr(self, name)) not in names:
                raise InvalidInput(f"{name} is {value!r}; choose one of {', '.join(map(str, names))}")
        object.__setattr__(self, "safe", (self.safe,) if isinstance(self.safe, str) else tuple(self.safe))
        if self.positions is not None:
            object.__setattr__(self, "positions", tuple(self.positions))
            if not all(isinstance(k, int) and 0 <= k < 32 for k in self.positions):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput(f"positions is {self.positions!r}; give whole numbers from 0, the least significant bit")

    def __call__(self, weights: Weights, generator: Generator | None = None) -> dict[str, Tensor]:
        return self.chip(weights, generator).weights

    def chip(self, weights: Weights, generator: Generator | None = None) -> Chip:
        """One realisation, with what is stored and how many errors there are."""
        if generator is None:
            raise InvalidInput("the fault 'bit-error' draws; give a torch.Generator")
        words, counts = dict[str, Stored](), [0] * 6
        held = self.storage.words(weights, generator)
        if unknown := sorted(set(self.safe) - held.keys()):
            raise InvalidInput(f"safe names {', '.join(unknown)}, which is not stored; there are {', '.join(sorted(held))}")
        for name, stored in held.items():
            words[name], more = self._struck(stored, generator)
            if name in self.safe:  # after the draws, so that the errors of the other tensors stay as they are
                words[name], more = stored, (stored.bits * stored.word.numel(), *[0] * 5)
            counts = [a + b for a, b in zip(counts, more, strict=True)]
        values = {name: stored.values(weights[name].dtype) for name, stored in words.items()}
        return Chip(values, words, *counts)

    def _struck(self, stored: Stored, generator: Generator) -> tuple[Stored, tuple[int, ...]]:
        """The words of one tensor as they are read, and the counts of `Chip`."""
        old = stored.pattern()
        if not old.numel():
            return stored, (0,) * 6
        rows = old.reshape(len(old) if old.dim() > 1 else 1, -1)
        new = rows
        lines = self._drawn((len(rows), 1), generator) if self.along == "row" else None
        for k in range(stored.bits):
            shape = (1, rows.shape[1]) if self.along == "column" else tuple(rows.shape)
            error = lines if lines is not None else self._drawn(shape, generator)
            if self.positions is None or k in self.positions:
                new = torch.where(error.to(new.device), _became(new, 1 << k, self.becomes), new)
        got, noticed = new.flatten(), torch.zeros_like(rows.flatten(), dtype=torch.bool)
        wrong_as_stored = got != rows.flatten()
        errors = sum(int(((got ^ rows.flatten()) >> k & 1).sum()) for k in range(stored.bits))
        if self.protection is not None:
            found = read(self.protection, rows, new, stored.bits, lambda check: self._checks(check, generator))
            got, noticed = found.pattern, found.noticed
            blank = torch.as_tensor(stored.blank, device=old.device).expand_as(old).flatten()
            got = torch.where(noticed, blank if self.detected == "zero" else rows.flatten(), got)
        wrong = got != rows.flatten()
        read_as = stored.holding(got.view_as(old))
        counts = (
            stored.bits * old.numel(), errors, int((wrong_as_stored & ~wrong & ~noticed).sum()), int(noticed.sum()),
            int((wrong & ~noticed).sum()), int((~torch.isfinite(read_as.values())).sum()),
        )  # fmt: skip
        return read_as, counts

    def _drawn(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """float64: a rate of 1e-9 is one.  Draws do not depend on the rate, so errors of rates are nested."""
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device) < self.rate

    def _checks(self, check: Tensor, generator: Generator) -> Tensor:
        """Check bits as they are read."""
        error = self._drawn(tuple(check.shape), generator).to(check.device)
        return torch.where(error, _became(check.long(), 1, self.becomes).bool(), check)


def _became(pattern: Tensor, bit: int, becomes: Becomes) -> Tensor:
    if becomes == "flipped":
        return pattern ^ bit
    return pattern & ~bit if becomes == "zero" else pattern | bit
