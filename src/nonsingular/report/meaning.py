"""meaning.py - what the numbers of a page mean, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

ATTACKED = {
    "Accuracy": "The share of examples that are still classified correctly after the attack moved every input value by at most "
    "ε_x and every weight by at most ε_w.",
    "Upper bound": "An attack shows that robust accuracy is at most this high. A stronger attack may find less; only a "
    "certificate bounds it from below.",
    "Scope": "Who shares the moved weights. sample: each example meets its own worst weights. batch: one set of weights for a "
    "batch. dataset: one set of weights for all examples, as in one faulty device. Robust accuracy can only grow in this order.",
}

CERTIFIED = {
    "Certified accuracy": "The share of examples that are proven to be classified correctly under every perturbation "
    "that moves input values by at most ε_x and weights by at most ε_w. Each example is proven against the worst weights for it "
    "alone, so the number holds in every scope and for every attack.",
    "Lower bound": "Robust accuracy is at least this high. What is not certified need not be wrong: the bound may be too loose, "
    "and a tighter one may prove more.",
    "Not covered by a certificate": "It is of the exact function of the weights: how the network as it runs rounds "
    "floating-point numbers is not covered. Nor are other examples than these, inputs outside the range of the data, or "
    "parameters that were held fixed (domain and moves, with every number above).",
}

DEPLOYED = {
    "Not covered by a certificate": "It is of the network as computed in {}, in any order of summation, under assumptions on the "
    "library that the documentation lists. Not covered are other examples than these, inputs outside the range of the data, and "
    "parameters that were held fixed (domain and moves, with every number above).",
}

SHARED = {
    "Shared certificates": "The share of examples that hold at once, at least, where they share the moved weights, as in one "
    "faulty device. No single set of weights within ε_w breaks more than the rest, each example with its worst input values "
    "against it. It is a count: which examples break is not said. Certified accuracy, where each example meets weights of its "
    "own, is never higher.",
}

SANDWICH = {
    "Not known": "Attacked minus proven accuracy: the share of examples that the attack did not break and the bound did not "
    "prove. Robust accuracy lies somewhere in between; a stronger attack lowers the upper end, a tighter bound raises the lower.",
}

RADII = {
    "Certified radii": "For each ε_x the largest ε_w with which the required share of the examples is certified; smaller radii "
    "are certified too. It is found by bisection, up to the largest ε_w of the grid, and rounded down: true radii are at least "
    "this large.",
}

AUC = {
    "AUC": "The volume under the accuracy surface divided by the area of the grid, from 0 to 1; only numbers from one grid "
    "compare. An axis AUC holds the other radius at its smallest value.",
    "± and intervals": "± is the sample standard deviation over the seeds. A 95 % Wilson interval belongs to one seed and says "
    "what its number of examples leaves open; for several seeds the page gives the lowest and the highest end.",
}

RISES = {
    "Rises": "Steps to a larger ball at which measured accuracy goes up. True accuracy cannot, because the balls are nested: "
    "there the attack missed something, and the number overstates robustness.",
}

CERTIFIED_RISES = {
    "Rises of certified accuracy": "Steps to a larger ball at which it goes up. What is proven there holds in the smaller ball "
    "too: the bound was looser in that one, and its number understates what is proven.",
}


def meaning(kinds: Sequence[str], *, fronts: bool, deployed: str | None = None) -> dict[str, str]:
    """Word -> what it means, for a page with these kinds of accuracy, and with or without fronts.

    deployed: the type in which the networks are computed that are certified; None: exactly.
    """
    attacked, certified, shared = "attacked" in kinds, "certified" in kinds, "shared" in kinds
    told = {("Attacked accuracy" if certified and k == "Accuracy" else k): v for k, v in ATTACKED.items()} if attacked else {}
    told |= (SHARED if shared else {}) | (CERTIFIED if certified else {}) | (SANDWICH if attacked and certified else {})
    if certified and deployed is not None:
        told |= {k: text.format(deployed) for k, text in DEPLOYED.items()}
    told |= (RADII if fronts else {}) | AUC
    return told | (RISES if attacked else {}) | (CERTIFIED_RISES if certified else {})
