"""catalog - the meaning of every name: the only tables of attacks, bounds, objectives, faults, models and data sets.

An entry is a declared value: a reference to a function, resolved when it is used, so that naming an attack in a config file or in
`--help` does not import torch; and its properties, with its card for the page and for `nonsingular list`.
A new attack, bound, objective, fault or model is one file in its folder and one entry here; the contract tests run over these
tables.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nonsingular.catalog.entries import (
    ALL,
    ALONE,
    ANY,
    ANY_DEVICE,
    BATCH,
    LOWER,
    LOWERED,
    NO_WEIGHTS,
    ONE_DEVICE,
    OTHER,
    OWN,
    ROUNDED,
    SIMULATED,
    UPPER,
    Attack,
    Bound,
    Card,
    Entry,
    FaultModel,
    Format,
    Objective,
)
from nonsingular.errors import InvalidInput

__all__ = [
    "ATTACKS",
    "BOUNDS",
    "DATASETS",
    "FAULTS",
    "FORMATS",
    "MODELS",
    "OBJECTIVES",
    "OTHER",
    "OWN",
    "SHARED",
    "UNSOUND",
    "Attack",
    "Bound",
    "Card",
    "Entry",
    "FaultModel",
    "Format",
    "Objective",
    "cards",
    "declared",
    "described",
    "known",
    "lookup",
    "name_of",
    "sound",
]


def _named(entries: Iterable[Any]) -> dict[str, Any]:
    return {entry.name: entry for entry in entries}


# --- the tables -----------------------------------------------------------------------------------------------------------

ATTACKS: Mapping[str, Attack] = _named((
    Attack("strongest", "nonsingular.attacks.strongest:strongest", starts=True, seeded=True, budget=True, card=Card(
        "The default: runs apgd on the inputs alone, on the weights alone and on both, and keeps the worst for each example or "
        "group. Over a grid it goes on from what smaller balls have found.",
        ANY, UPPER + " Falls along both radii by construction.", "Steps: Croce and Hein, arXiv:2003.01690.",
    )),
    Attack("paper", "nonsingular.attacks.joint_pgd:joint_pgd", steps=100, raw=True, seeded=True, card=Card(
        "The attack of the paper: 100 signed gradient steps on the cross-entropy, of inputs and weights at once. Each point of "
        "the grid is attacked by itself.",
        ANY, UPPER + " It can rise along a radius; there it missed something.", "arXiv:2102.11935, section 4.1.",
    )),
    Attack("neuron", "nonsingular.attacks.neuron_pgd:neuron_pgd", steps=40, seeded=True, scopes=("sample",), dense=True,
           card=Card(
        "Projected gradient descent of the inputs and of one number per neuron of a dense network.",
        "No sharing: each example has its own weights.", UPPER, "This library; steps: Madry et al., arXiv:1706.06083.",
    )),
    Attack("apgd", "nonsingular.attacks.apgd:apgd", starts=True, seeded=True, card=Card(
        "Adaptive gradient descent on the margin over inputs and weights, from many starts. Where each example has its own "
        "weights, a dense network is searched over one number per neuron, which reaches the same outputs. Where weights are "
        "shared, it lowers the smoothed accuracy of the whole group.",
        ANY, UPPER, "Steps: Croce and Hein, arXiv:2003.01690.",
    )),
    Attack("alternating", "nonsingular.attacks.strongest:alternating", starts=True, steps=20, card=Card(
        "Inputs and weights in turn, each attacked while the other is held.", ANY, UPPER, "This library.",
    )),
    Attack("square", "nonsingular.attacks.square:square", starts=True, steps=500, moves=("inputs",), seeded=True, card=Card(
        "Random search on the inputs without gradients: square windows are set to the ends of the ball and kept where they lower "
        "the margin. What hides gradients does not help against it.",
        NO_WEIGHTS, UPPER, "Andriushchenko et al., arXiv:1912.00049.",
    )),
    Attack("corners", "nonsingular.attacks.corners:corners", starts=True, steps=300, moves=("weights",), seeded=True, card=Card(
        "Random search on the weights without gradients: blocks of a tensor are set to the ends of its box and kept where they "
        "lower the objective.",
        ANY, UPPER + " It does not move inputs.", "This library, after arXiv:1912.00049.",
    )),
))  # fmt: skip
BOUNDS: Mapping[str, Bound] = _named((
    Bound("theorem1", "nonsingular.bounds.theorem:theorem1", card=Card(
        "Theorem 1 of the paper, repaired: the change of a margin from its inputs and from its weights, layer by layer.",
        ALONE, LOWER, "arXiv:2102.11935, Theorem 1; the repair is this library's.",
    )),
    Bound("theorem1-printed", "nonsingular.bounds.theorem:theorem1_printed", sound=False, card=Card(
        "Theorem 1 as the paper prints it. It is false for three layers or more.",
        ALONE, "No bound: for reproduction alone.", "arXiv:2102.11935, Theorem 1.",
    )),
    Bound("interval", "nonsingular.bounds.interval:interval", card=Card(
        "Passes intervals through the network: the box of the inputs and the box of the weights give a box of every activation.",
        ALONE, LOWER + " The cheapest and the loosest.", "Gowal et al., arXiv:1810.12715; weights: arXiv:2102.11935.",
    )),
    Bound("crown-ibp", "nonsingular.bounds.linear:crown_ibp", card=Card(
        "Linear bounds from the output backwards, on hidden bounds by intervals.",
        ALONE, LOWER, "Zhang et al., arXiv:1906.06316, here with the weights in boxes.",
    )),
    Bound("crown", "nonsingular.bounds.linear:crown", card=Card(
        "Linear bounds of every layer backwards to the box of the inputs, with the weights in boxes.",
        ALONE, LOWER, "Zhang et al., arXiv:1811.00866, here with the weights in boxes.",
    )),
    Bound("alpha-crown", "nonsingular.bounds.alpha:alpha_crown", card=Card(
        "CROWN with the slopes of the lower bounds moved by gradient ascent until the bound is tight.",
        ALONE, LOWER, "Xu et al., arXiv:2011.13824, here with the weights in boxes.",
    )),
    Bound("branch-and-bound", "nonsingular.bounds.branch:branch_and_bound", card=Card(
        "Fixes the signs of open neurons one at a time and bounds every part, until each is decided or the parts run out.",
        ALONE, LOWER, "Wang et al., arXiv:2103.06624; De Palma et al., arXiv:2104.06718.",
    )),
    Bound("best", "nonsingular.bounds.best:best", card=Card(
        "The best of all sound bounds, the cheapest first.", ALONE, LOWER, "Those of its members.",
    )),
    Bound("exact", "nonsingular.bounds.exact:exact", card=Card(
        "Solves for the worst margin as a mixed-integer program: small networks only.",
        ALONE, LOWER + " Where the solver finishes, it is the truth.", "Tjeng et al., arXiv:1711.07356, here with moved weights.",
    )),
))  # fmt: skip
UNSOUND = frozenset(name for name, bound in BOUNDS.items() if not bound.sound)
"""Bounds for reproduction only, which may not certify."""
_LOSSES = "nonsingular.training.objectives:"
_CERTIFIED = "nonsingular.training.certified:Certified"
_MOVED, _TRADES = "nonsingular.training.moved:", "nonsingular.training.trades:"
_INNER = ("steps", "warmup", "domain")
OBJECTIVES: Mapping[str, Objective] = _named((
    Objective("standard", _LOSSES + "standard", card=Card(
        "Plain training: mean cross-entropy on the inputs as they are.",
        NO_WEIGHTS, LOWERED, "Goodfellow et al., Deep Learning, section 6.2.",
    )),
    Objective("weight-perturb", _LOSSES + "TheoremRegularised", needs=("eps_w", "beta"), takes=("warmup",), card=Card(
        "Plain training and beta times zeta, what moved weights cost the margins by Theorem 1 as printed. Dense networks only.",
        ALL, LOWERED, "arXiv:2102.11935, loss (4) with alpha = 0.",
    )),
    Objective("at", _LOSSES + "Adversarial", needs=("eps_x",), takes=_INNER, card=Card(
        "Adversarial training: cross-entropy at the worst inputs that projected gradient descent finds.",
        NO_WEIGHTS, LOWERED, "Madry et al., arXiv:1706.06083.",
    )),
    Objective("at-beta", _LOSSES + "at_beta", needs=("eps_x", "eps_w", "beta"), takes=_INNER, card=Card(
        "Adversarial training on the inputs and beta times zeta. Dense networks only.",
        ALL, LOWERED, "arXiv:2102.11935, section 4.",
    )),
    Objective("jiwp", _LOSSES + "TheoremRegularised", needs=("eps_x", "eps_w", "alpha", "beta"), takes=("warmup",), card=Card(
        "Joint input-weight perturbation: plain training, alpha times tau and beta times zeta, without an inner search. Dense "
        "networks only.",
        ALL, LOWERED, "arXiv:2102.11935, loss (4).",
    )),
    Objective("joint", _LOSSES + "JointlyAdversarial", needs=("eps_x", "eps_w"), takes=_INNER, card=Card(
        "Adversarial training on inputs and weights together: the worst input and one number per neuron, or per output channel "
        "of a network with convolutions.",
        "No sharing: each example has its own weights.", LOWERED, "This library.",
    )),
    Objective("joint-batch", _MOVED + "joint_batch", needs=("eps_x", "eps_w"), takes=_INNER, card=Card(
        "Adversarial training at moved weights: the worst inputs, then the corner of the weight box to which one signed step "
        "leads.",
        BATCH, LOWERED, "This library, after arXiv:2102.11935, section 4.1.",
    )),
    Objective("trades", _TRADES + "Trades", needs=("eps_x", "beta"), takes=_INNER, card=Card(
        "Cross-entropy on the inputs as they are, and beta times how far predictions move at the worst inputs.",
        NO_WEIGHTS, LOWERED, "Zhang et al., arXiv:1901.08573.",
    )),
    Objective("mart", _TRADES + "Mart", needs=("eps_x", "beta"), takes=_INNER, card=Card(
        "Boosted cross-entropy at the worst inputs, and beta times how far predictions move there, most where they were wrong.",
        NO_WEIGHTS, LOWERED, "Wang et al., ICLR 2020.",
    )),
    Objective("awp", _MOVED + "awp", needs=("eps_x", "rho"), takes=_INNER, card=Card(
        "Adversarial training at weights that one gradient step moved by rho of their norm.",
        BATCH, LOWERED, "Wu et al., arXiv:2004.05884.",
    )),
    Objective("rwp", _MOVED + "rwp", needs=("eps_x", "rho"), takes=_INNER, card=Card(
        "The same in ten steps, by those examples alone whose loss is small.", BATCH, LOWERED, "Yu et al., arXiv:2205.14826.",
    )),
    Objective("sam", _MOVED + "sam", needs=("rho",), card=Card(
        "Plain training at the worst weights within a distance rho.", BATCH, LOWERED, "Foret et al., arXiv:2010.01412.",
    )),
    Objective("asam", _MOVED + "asam", needs=("rho",), card=Card(
        "The same with distances relative to each weight.", BATCH, LOWERED, "Kwon et al., arXiv:2102.11600.",
    )),
    Objective("quantised", _MOVED + "quantised", needs=("bits",), takes=("eps_x", *_INNER), card=Card(
        "Training at the rounded weights, whose gradient moves the weights themselves; with eps_x at the worst inputs.",
        ONE_DEVICE, LOWERED, "Jacob et al., arXiv:1712.05877.",
    )),
    Objective("randbet", _MOVED + "randbet", needs=("rate",), takes=("bits", "eps_x", *_INNER), card=Card(
        "Training at the rounded weights and at those after random bit errors, new ones in each step; with eps_x at the worst "
        "inputs. Best with --clip.",
        ANY_DEVICE, LOWERED, "Stutz et al., arXiv:2006.13977.",
    )),
    Objective("certified", _CERTIFIED, needs=("eps_x", "eps_w", "alpha"), takes=("part", "warmup", "domain"), card=Card(
        "Cross-entropy, and that of the margins that intervals prove over inputs and weights, with radii that grow; with part "
        "below 1 in a smaller box of inputs around the worst ones.",
        ALONE, LOWERED, "Gowal et al., arXiv:1810.12715; part: Mueller et al., arXiv:2210.04871.",
    )),
))  # fmt: skip
FAULTS: Mapping[str, FaultModel] = _named((
    FaultModel("uniform", "nonsingular.faults.uniform:UniformRounding", box=True, card=Card(
        "Weights stored as whole numbers of 2 to 16 bits: symmetric, evenly spaced levels, rounded to nearest, with a step for "
        "each tensor or each output channel.",
        ONE_DEVICE, ROUNDED,
        "Jacob et al., arXiv:1712.05877.",
    )),
    FaultModel("fixed-point", "nonsingular.faults.formats:FixedPoint", box=True, card=Card(
        "Weights in fixed point of 2 to 16 bits: a step that is a power of two and does not follow the weights; what is beyond "
        "the range is stored as its end.",
        ONE_DEVICE, ROUNDED,
        "Arithmetic of fixed point.",
    )),
    FaultModel("float", "nonsingular.faults.formats:FloatFormat", box=True, card=Card(
        "Weights in floating point of 8, 16 or 32 bits, rounded to nearest.",
        ONE_DEVICE, "Exact: its realisation is one point; its box holds every rounding to nearest.",
        "IEEE 754; 8 bits: Micikevicius et al., arXiv:2209.05433.",
    )),
    FaultModel("bit-error", "nonsingular.faults.bit_errors:BitErrors", random=True, card=Card(
        "Every stored bit is wrong with one probability: flipped, or stuck at 0 or 1; each alone, or by rows or bit lines of the "
        "array; with parity, SECDED or a checksum where given. From one seed, errors at a lower rate are among those at a higher "
        "one.",
        ANY_DEVICE, SIMULATED,
        "E.g. Stutz et al., arXiv:2006.13977.",
    )),
    FaultModel("pcm", "nonsingular.faults.analog:PhaseChange", random=True, card=Card(
        "Weights as conductance pairs of phase-change memory: programming noise, drift since programming with or without its "
        "compensation, and 1/f read noise.",
        ANY_DEVICE, SIMULATED,
        "Joshi et al., arXiv:1906.03138; Nandakumar et al., ICECS 2019; numbers of aihwkit.",
    )),
    FaultModel("reram", "nonsingular.faults.analog:ReRAM", random=True, card=Card(
        "Weights as conductance pairs of resistive memory, 1 second, 1 day or 2 days after programming.",
        ANY_DEVICE, SIMULATED,
        "Wan et al., Nature 608 (2022); fit of aihwkit.",
    )),
))  # fmt: skip
MODELS: Mapping[str, Entry] = _named(
    (
        Entry("mlp", "nonsingular.models.architectures:mlp"),
        Entry("conv", "nonsingular.models.architectures:conv"),
        Entry("resnet", "nonsingular.models.architectures:resnet"),
    )
)
DATASETS: Mapping[str, Entry] = _named(
    Entry(name, "nonsingular.data.datasets:load") for name in ("digits", "mnist", "fashion-mnist", "cifar10")
)
_READERS = "nonsingular.data.readers"
FORMATS: Mapping[str, Format] = _named((
    Format("npz", f"{_READERS}.npz:read", says="an .npz file", suffixes=(".npz",)),
    Format("idx", f"{_READERS}.idx:read", says="a folder of IDX files", finds=f"{_READERS}.idx:found"),
    Format("arrow", f"{_READERS}.arrow:read", says="a .parquet or .arrow file or a folder of them",
           suffixes=(".parquet", ".arrow"), finds=f"{_READERS}.arrow:found"),
    Format("csv", f"{_READERS}.csv:read", says="a .csv file or a folder of them", suffixes=(".csv",), folders=True),
    Format("images", f"{_READERS}.images:read", says="a folder of images with one sub-folder a class",
           finds=f"{_READERS}.images:found"),
))  # fmt: skip
"""Formats of data files; where two would read a folder, the first does."""


# --- from a name to its entry ---------------------------------------------------------------------------------------------


def known(table: Mapping[str, Entry], name: str, kind: str) -> str:
    """`name` itself.  Raises InvalidInput, with the nearest name, if the table does not have it."""
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"there is no {kind} '{name}'{hint}; choose one of {', '.join(table)}")
    return name


def lookup(table: Mapping[str, Entry], name: str, kind: str) -> Any:
    """The function behind `name`.  Raises InvalidInput if the table does not have it."""
    return table[known(table, name, kind)].load()


def sound(name: str) -> Bound:
    """The entry of a bound that may certify.  Raises InvalidInput for other names."""
    if name in UNSOUND:
        raise InvalidInput(f"'{name}' is not a bound and may not certify; use 'best'")
    return BOUNDS[known(BOUNDS, name, "bound")]


def described(table: Mapping[str, Entry], name: str) -> str:
    """The text of the card of `name`; without one, the start of its docstring, read from its file: nothing is imported."""
    if (card := getattr(table[name], "card", None)) is not None:
        return f"{card.does} Source: {card.source}"
    module, function = str(table[name].what).split(":")
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    text = next(ast.get_docstring(node) for node in body if isinstance(node, ast.FunctionDef) and node.name == function)
    return " ".join((text or "").split("\n\n")[0].split())


def name_of(attack: Any) -> str:
    """How records call an attack; the arguments of a functools.partial belong to the name."""
    if isinstance(attack, partial):
        return f"{name_of(attack.func)}({', '.join(f'{k}={v}' for k, v in sorted(attack.keywords.items()))})"
    return getattr(attack, "name", None) or getattr(attack, "__name__", type(attack).__name__)


def declared(attack: Attack | Callable[..., Any]) -> Attack:
    """The entry of an attack that is given as a function: from the catalog, or a user's own, made an Attack without a start.

    An argument `start` or `steps` of a user's own function still counts, with a DeprecationWarning: declare it in an Attack.
    """
    if isinstance(attack, Attack):
        return attack
    function: Any = attack
    settings: dict[str, Any] = attack.keywords if isinstance(attack, partial) else {}
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, Attack):
        ours: Attack | None = function
    else:
        where = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
        ours = next((entry for entry in (*ATTACKS.values(), SHARED) if entry.what == where), None)
    if ours is not None:
        return Attack(
            name_of(attack),
            attack,
            starts=ours.starts,
            steps=settings.get("steps", ours.steps),
            scopes=ours.scopes,
            seeded=ours.seeded,
            budget=ours.budget and not settings,
        )
    parameters = inspect.signature(attack).parameters
    starts, steps = "start" in parameters, parameters["steps"].default if "steps" in parameters else None
    steps = steps if isinstance(steps, int) else None
    if starts or steps is not None:
        said = ", ".join([*(["starts=True"] if starts else []), *([f"steps={steps}"] if steps is not None else [])])
        warnings.warn(
            f"the attack {name_of(attack)} is taken to use its arguments start and steps; give "
            f"nonsingular.Attack({name_of(attack)!r}, {name_of(attack)}, {said}) instead",
            DeprecationWarning,
            stacklevel=4,
        )
    return Attack(name_of(attack), attack, starts=starts, steps=steps)


SHARED = Attack("shared_apgd", "nonsingular.attacks.shared_apgd:shared_apgd", starts=True, steps=4, scopes=("batch", "dataset"))
"""What `apgd` does where weights are shared; public as a function alone."""


def cards(attacks: Iterable[str], bounds: Iterable[str]) -> dict[str, Card]:
    """Name -> card, for the names that records use; "a+b" is the worst of both."""
    found: dict[str, Card] = {}
    for name in attacks:
        members = name.split("+")
        for member in members:
            found[member] = ATTACKS[member].card if member in ATTACKS else OTHER
        if len(members) > 1:
            found[name] = Card(
                "The worst of its members, example by example or group by group.", ANY, UPPER, "Those of its members."
            )
    mine = Card("A bound of your own.", ALONE, LOWER, "Its name in the records.")
    return found | {name: BOUNDS[name].card if name in BOUNDS else mine for name in bounds}
