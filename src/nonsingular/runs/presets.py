"""presets.py - the seven models of Figure 1 on each data set, its grid, and what is recommended.

Hyperparameters come from the search on the *validation* split in docs/reproduction/search.md; the test set chose none of them.
Fashion-MNIST has MNIST's, not searched for.
"""

from __future__ import annotations

from typing import Any

from nonsingular.errors import InvalidInput
from nonsingular.settings import Network, Recipe, ReproduceSettings

TITLES = {
    "standard": "Standard",
    "weight-perturb": "Weight perturb",
    "at": "AT",
    "at-beta-1": "AT + β (1)",
    "at-beta-2": "AT + β (2)",
    "jiwp": "JIWP",
    "joint": "Joint adversarial",
}
"""Figure 1 (a)-(f), and the joint adversarial training that the paper leaves out."""

RECOMMENDED, CERTIFIED = "recommended", "recommended-certified"
NAMES = {**TITLES, RECOMMENDED: "Recommended"}
"""And what the demonstration shows beside them."""
_JOINT: dict[str, Any] = {"method": "joint", "epochs": 30, "lr": 3e-3, "average": 0.999, "clip": 0.5}
_PROVEN: dict[str, Any] = {
    "method": "certified", "alpha": 0.5, "part": 0.2, "epochs": 20, "lr": 1e-2, "average": 0.999, "clip": 0.5,
}  # fmt: skip
_DIGITS_LONG: dict[str, Any] = {"batch_size": 64, "average": 0.99, "clip": 0.5}
WINNERS: dict[str, dict[str, Recipe]] = {
    RECOMMENDED: {
        "mnist": Recipe(eps_x=0.1, eps_w=0.006, **_JOINT),
        "fashion-mnist": Recipe(eps_x=0.1, eps_w=0.006, **_JOINT),
        "digits": Recipe(method="joint", eps_x=0.15, eps_w=0.008, epochs=60, lr=5e-3, **_DIGITS_LONG),
    },
    CERTIFIED: {
        "mnist": Recipe(eps_x=0.1, eps_w=0.006, **_PROVEN),
        "fashion-mnist": Recipe(eps_x=0.1, eps_w=0.006, **_PROVEN),
        "digits": Recipe(method="certified", eps_x=0.12, eps_w=0.008, alpha=0.5, part=0.3, epochs=60, lr=2e-2, **_DIGITS_LONG),
    },
}
"""What `--method recommended` stands for, and `recommended-certified`, where what is proven counts: docs/leaderboard/README.md
has the comparison, on validation examples, behind them.  Fashion-MNIST has MNIST's, not searched for."""
OTHER_DATA: dict[str, dict[str, Any]] = {RECOMMENDED: _JOINT, CERTIFIED: _PROVEN}
"""MNIST's numbers but for the radii."""

_MNIST = ReproduceSettings(
    data="mnist",
    network=Network(hidden=(128, 64, 32)),
    recipes={
        "standard": Recipe(method="standard"),
        "weight-perturb": Recipe(method="weight-perturb", eps_w=0.01, beta=0.03),
        "at": Recipe(method="at", eps_x=0.1),
        "at-beta-1": Recipe(method="at-beta", eps_x=0.1, eps_w=0.01, beta=0.003),
        "at-beta-2": Recipe(method="at-beta", eps_x=0.1, eps_w=0.01, beta=0.01),
        "jiwp": Recipe(method="jiwp", eps_x=0.1, eps_w=0.01, alpha=0.001, beta=0.01),
        "joint": Recipe(method="joint", eps_x=0.1, eps_w=0.004),
    },
    eps_x=tuple(round(0.02 * i, 12) for i in range(11)),
    eps_w=tuple(round(0.001 * i, 12) for i in range(11)),
)

_SMALL: dict[str, Any] = {"epochs": 60, "batch_size": 64, "lr": 2e-3}

_DIGITS = ReproduceSettings(
    data="digits",
    network=Network(hidden=(64, 32)),
    recipes={
        "standard": Recipe(method="standard", **_SMALL),
        "weight-perturb": Recipe(method="weight-perturb", eps_w=0.02, beta=0.1, **_SMALL),
        "at": Recipe(method="at", eps_x=0.1, **_SMALL),
        "at-beta-1": Recipe(method="at-beta", eps_x=0.2, eps_w=0.02, beta=0.01, **_SMALL),
        "at-beta-2": Recipe(method="at-beta", eps_x=0.1, eps_w=0.02, beta=0.03, **_SMALL),
        "jiwp": Recipe(method="jiwp", eps_x=0.1, eps_w=0.02, alpha=0.001, beta=0.1, **_SMALL),
        "joint": Recipe(method="joint", eps_x=0.15, eps_w=0.004, **_SMALL),
        RECOMMENDED: WINNERS[RECOMMENDED]["digits"],
    },
    eps_x=tuple(round(0.02 * i, 12) for i in range(11)),
    eps_w=tuple(round(0.002 * i, 12) for i in range(11)),
    limit=None,
)

REPRODUCTIONS = {"digits": _DIGITS, "mnist": _MNIST, "fashion-mnist": _MNIST.model_copy(update={"data": "fashion-mnist"})}

GRIDS = {name: (s.eps_x, s.eps_w) for name, s in REPRODUCTIONS.items()} | {
    "cifar10": (tuple(round(i * 0.8 / 255, 12) for i in range(11)), tuple(round(0.0005 * i, 12) for i in range(11))),
}
"""Default grid (eps_x, eps_w) of each named data set: 11 x 11 from 0."""


def reproduction(data: Any) -> ReproduceSettings:
    """The preset of a data set.  Raises InvalidInput if there is none."""
    if not isinstance(data, str) or data not in REPRODUCTIONS:
        raise InvalidInput(f"data is {data!r}, which has no reproduction preset; choose one of {', '.join(REPRODUCTIONS)}")
    return REPRODUCTIONS[data]


def training_defaults(data: Any, method: str | None) -> dict[str, Any]:
    """Settings of `train` that the data set's preset has for this method; for other data the method alone.

    For `recommended` and its kin those of the method that it stands for.
    """
    if method is not None and method in [*WINNERS]:
        known = WINNERS[method]
        recipe = known[data].model_dump() if isinstance(data, str) and data in known else dict(OTHER_DATA[method])
        return {**training_defaults(data, None), "recipe": recipe}
    if not isinstance(data, str) or data not in REPRODUCTIONS:
        return {"recipe": {"method": method or "standard"}}
    preset = REPRODUCTIONS[data]
    of_method = [r for name, r in preset.recipes.items() if r.method == (method or "standard") and name != RECOMMENDED]
    recipe = of_method[-1] if of_method else None  # of the two AT + beta, the better one on the validation split
    return {"network": preset.network.model_dump()} | ({"recipe": recipe.model_dump()} if recipe else {})
