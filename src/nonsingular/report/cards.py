"""cards.py - what each attack and each bound of the catalog does and what its number means, as text for the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """does: in a sentence or two.  shares: who shares the moved weights.  means: how to read its number.  source: where from."""

    does: str
    shares: str
    means: str
    source: str


UPPER = "Upper bound of robust accuracy: what it did not break may still break."
LOWER = "Lower bound of robust accuracy in every scope: what is certified cannot be broken inside the ball, in exact arithmetic."
ANY = "Whoever the scope says: each example alone (sample), a batch, or all examples (dataset)."
ALONE = "Nobody: each example is proven against the worst weights for it alone, which covers every scope."
NO_WEIGHTS = "It does not move weights."

ATTACKS = {
    "strongest": Card(
        "The default: runs apgd on the inputs alone, on the weights alone and on both, and keeps the worst for each example or "
        "group. Over a grid it goes on from what smaller balls have found.",
        ANY, UPPER + " Falls along both radii by construction.", "Steps: Croce and Hein, arXiv:2003.01690.",
    ),
    "apgd": Card(
        "Adaptive gradient descent on the margin over inputs and weights, from many starts. Where each example has its own "
        "weights, a dense network is searched over one number per neuron, which reaches the same outputs. Where weights are "
        "shared, it lowers the smoothed accuracy of the whole group.",
        ANY, UPPER, "Steps: Croce and Hein, arXiv:2003.01690.",
    ),
    "paper": Card(
        "The attack of the paper: 100 signed gradient steps on the cross-entropy, of inputs and weights at once. Each point of "
        "the grid is attacked by itself.",
        ANY, UPPER + " It can rise along a radius; there it missed something.", "arXiv:2102.11935, section 4.1.",
    ),
    "neuron": Card(
        "Projected gradient descent of the inputs and of one number per neuron of a dense network.",
        "Nobody: each example has its own weights.", UPPER, "This library; steps: Madry et al., arXiv:1706.06083.",
    ),
    "alternating": Card(
        "Inputs and weights in turn, each attacked while the other is held.", ANY, UPPER, "This library.",
    ),
    "square": Card(
        "Random search on the inputs without gradients: square windows are set to the ends of the ball and kept where they lower "
        "the margin. What hides gradients does not help against it.",
        NO_WEIGHTS, UPPER, "Andriushchenko et al., arXiv:1912.00049.",
    ),
    "corners": Card(
        "Random search on the weights without gradients: blocks of a tensor are set to the ends of its box and kept where they "
        "lower the objective.",
        ANY, UPPER + " It does not move inputs.", "This library, after arXiv:1912.00049.",
    ),
}  # fmt: skip
"""By the catalog's name."""

BOUNDS = {
    "interval": Card(
        "Passes intervals through the network: the box of the inputs and the box of the weights give a box of every activation.",
        ALONE, LOWER + " The cheapest and the loosest.", "Gowal et al., arXiv:1810.12715; weights: arXiv:2102.11935.",
    ),
    "crown-ibp": Card(
        "Linear bounds from the output backwards, on hidden bounds by intervals.",
        ALONE, LOWER, "Zhang et al., arXiv:1906.06316, here with the weights in boxes.",
    ),
    "crown": Card(
        "Linear bounds of every layer backwards to the box of the inputs, with the weights in boxes.",
        ALONE, LOWER, "Zhang et al., arXiv:1811.00866, here with the weights in boxes.",
    ),
    "alpha-crown": Card(
        "CROWN with the slopes of the lower bounds moved by gradient ascent until the bound is tight.",
        ALONE, LOWER, "Xu et al., arXiv:2011.13824, here with the weights in boxes.",
    ),
    "branch-and-bound": Card(
        "Fixes the signs of open neurons one at a time and bounds every part, until each is decided or the parts run out.",
        ALONE, LOWER, "Wang et al., arXiv:2103.06624; De Palma et al., arXiv:2104.06718.",
    ),
    "best": Card("The best of all sound bounds, the cheapest first.", ALONE, LOWER, "Those of its members."),
    "exact": Card(
        "Solves for the worst margin as a mixed-integer program: small networks only.",
        ALONE, LOWER + " Where the solver finishes, it is the truth.", "Tjeng et al., arXiv:1711.07356, here with moved weights.",
    ),
    "theorem1": Card(
        "Theorem 1 of the paper, repaired: the change of a margin from its inputs and from its weights, layer by layer.",
        ALONE, LOWER, "arXiv:2102.11935, Theorem 1; the repair is this library's.",
    ),
    "theorem1-printed": Card(
        "Theorem 1 as the paper prints it. It is false for three layers or more.",
        ALONE, "No bound: for reproduction alone.", "arXiv:2102.11935, Theorem 1.",
    ),
}  # fmt: skip
"""By the catalog's name."""

OTHER = Card(
    "An attack of your own, or of a library plugged in. Each result is checked against its ball before it counts.",
    ANY, UPPER, "Its name in the records.",
)  # fmt: skip


def cards(attacks: Iterable[str], bounds: Iterable[str]) -> dict[str, Card]:
    """Name -> card, for the names that records use; "a+b" is the worst of both."""
    found: dict[str, Card] = {}
    for name in attacks:
        members = name.split("+")
        for member in members:
            found[member] = ATTACKS.get(member, OTHER)
        if len(members) > 1:
            found[name] = Card(
                "The worst of its members, example by example or group by group.", ANY, UPPER, "Those of its members."
            )
    return found | {
        name: BOUNDS.get(name, Card("A bound of your own.", ALONE, LOWER, "Its name in the records.")) for name in bounds
    }
