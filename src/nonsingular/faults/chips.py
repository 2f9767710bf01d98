"""chips.py - the settings of a campaign on simulated chips, checked as all settings are.  No torch here."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nonsingular.catalog import FAULTS, known
from nonsingular.settings import AttackName, GridSettings
from nonsingular.settings.text import MOST, InputGrid, WeightGrid, parse_grid


def parse_rates(value: Any) -> Any:
    """'low:high:log' -> one rate a decade; otherwise as `parse_grid`.

    >>> parse_rates("1e-4:1e-2:log")
    (0.0001, 0.001, 0.01)
    """
    if not isinstance(value, str) or not value.endswith(":log"):
        return parse_grid(value)
    try:
        low, high = (float(end) for end in value.removesuffix(":log").split(":"))
        decades = round(math.log10(high / low))
        if not 0 < low <= high <= 1 or decades > MOST:
            raise ValueError
        return tuple(float(f"{low * 10**k:.6g}") for k in range(decades + 1) if low * 10**k <= high * (1 + 1e-9))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"'{value}' is not low:high:log; write 1e-4:1e-1:log, or the rates as 0,1e-3,1e-2") from None


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError(f"{list(values)} does not increase; give rates in strictly increasing order")
    return values


Rate = Annotated[float, Field(ge=0, le=1)]
Rates = Annotated[tuple[Rate, ...], Field(min_length=1), AfterValidator(_rising), BeforeValidator(parse_rates)]


class CampaignSettings(GridSettings):
    """Accuracy on simulated chips, over error rates and input radii.  eps_w, relative: not used, weights move by the fault."""

    fault: Annotated[str, AfterValidator(lambda name: known(FAULTS, name, "fault"))] = Field(
        description="Simulate chips with this fault ('nonsingular list faults'), such as bit-error, instead of moving weights "
        "within radii. --eps-x is then 0 by default. Default: none."
    )
    rates: Rates | None = Field(
        None,
        description="Error rates of --fault bit-error: 1e-4:1e-1:log, low:high:points or a,b,c. Default: 0,1e-4,1e-3,1e-2.",
    )
    chips: int = Field(50, ge=1, le=100_000, description="Chips that --fault simulates. Default: 50.")
    stored: str | None = Field(
        None,
        description="Format of the weights of --fault: int8, int4-per-channel, uint8 (asymmetric), q3.13 (fixed), bfloat16, "
        "float16, float32, float8_e4m3fn or float8_e5m2; with pcm and reram, how weights are rounded before. Default: int8 for "
        "bits, not rounded for pcm and reram.",
    )  # fmt: skip
    becomes: Literal["flipped", "zero", "one"] = Field(
        "flipped", description="A bit in error of --fault: flipped (default), or stuck at zero or one."
    )
    along: Literal["cell", "row", "column"] = Field(
        "cell", description="Bits of --fault that fail together: cell (default: none), row or column."
    )
    protection: Literal["none", "parity", "secded", "checksum"] = Field(
        "none", description="Memory of --fault: none (default), parity, secded or checksum."
    )
    age: float | None = Field(
        None, ge=0, allow_inf_nan=False,
        description="Seconds after programming at which --fault pcm (any) or reram (1, 86400 or 172800) is read. Default: 0 for "
        "pcm, 86400 for reram.",
    )  # fmt: skip
    g_max: float | None = Field(
        None, gt=0, allow_inf_nan=False,
        description="Largest conductance of --fault pcm or reram, in microsiemens. Default: 25 for pcm, 40 for reram.",
    )  # fmt: skip
    drift: Literal["compensated", "raw"] = Field(
        "compensated", description="Drift of --fault pcm: compensated (default) by one factor for each tensor, or raw."
    )
    reads: Literal["noisy", "exact"] = Field("noisy", description="Read-out of --fault pcm: noisy (default) or exact.")
    draws: int = Field(
        0, ge=0, le=1000,
        description="Also choose inputs before the fault is known, against the mean of so many other chips of --fault. Default: "
        "0, not.",
    )  # fmt: skip
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the first chip of --fault. Default: 0.")
    advice: int = Field(
        0, ge=0, le=1000,
        description="Also measure what to protect from --fault bit-error: each layer, the highest bits, clipped weights, and so "
        "many of the most damaging bits. Default: 0, not.",
    )  # fmt: skip
    required: float | None = Field(
        None, gt=0, le=1, description="Accuracy that a chip of --fault must reach: 0.9. Default: none."
    )
    attack: AttackName = "apgd"
    eps_x: InputGrid | None = (0.0,)
    eps_w: WeightGrid | None = (0.0,)

    @model_validator(mode="after")
    def _by_the_fault(self) -> CampaignSettings:
        if self.eps_w != (0.0,) or self.relative:
            raise ValueError("eps_w and relative are for weights within radii; with a fault, leave them out")
        if not isinstance(self.eps_x, tuple):
            raise ValueError("eps_x: give one radius for all inputs with a fault, or several: 0,0.01,0.02")
        if self.fault not in ("pcm", "reram") and (self.age is not None or self.g_max is not None):
            raise ValueError(f"age and g_max are of pcm and reram; with the fault {self.fault}, leave them out")
        if self.fault != "pcm" and (self.drift != "compensated" or self.reads != "noisy"):
            raise ValueError(f"drift and reads are of pcm; with the fault {self.fault}, leave them out")
        if self.advice and self.fault != "bit-error":
            raise ValueError(f"advice is about bits that fail, which the fault {self.fault} has none of; leave it out")
        if self.rates is not None and self.fault != "bit-error":
            raise ValueError(f"rates: the fault {self.fault} has none; leave them out")
        return self
