"""Which bound knows which operation, in which type: docs/certificates/operators.md, made by trying each of them.

python tests/operator_types.py          # writes the page; about a minute
Each network of tests/test_bounds.py (OPERATORS) and tests/test_bilinear.py (FORWARDS, LAYERS) has all parameters moving.  A cell
is "yes" where the bound is given and no sampled point of the ball beats it; "no": it refuses the network, by name.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

import nonsingular as ns
from nonsingular.bounds.exact import exact
from nonsingular.errors import UnsupportedModel
from test_bilinear import FORWARDS, LAYERS, of
from test_bounds import OPERATORS, seasoned

PAGE = Path(__file__).resolve().parent.parent / "docs" / "certificates" / "operators.md"
BALL = ns.JointBall(1e-3, 1e-3, None, moves="all")
BOUNDS = ("interval", "crown-ibp", "crown", "alpha-crown")
HEAD = """# Operations and types

`python tests/operator_types.py` tries every bound on a small network of every operation, all parameters moving, and writes
this page; `tests/test_types.py` holds it against the code.
"yes": there is a bound, and no sampled point of the ball beats it. "no": it refuses the network and names the operation.

- The four bounds, in float64 and in float32. `decide`: branch and bound. `shared`: `certify_shared`, one W' for all.
- `exact` is a mixed-integer program for piecewise linear networks. Here its weights stay, and inputs move.
- `deployed`: `certify(..., deployed=)`, the network as computed in that type.

"""


@cache
def networks() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    """Name -> (a network, the shape of its input)."""
    found: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {**OPERATORS}
    found |= {name: partial(lambda name: (of(name), (3,)), name) for name in FORWARDS}
    layers = {f"{name}, layer" if name in found else name: make for name, make in LAYERS.items()}
    return found | {name: partial(lambda make: (make(), (2, 3)), make) for name, make in layers.items()}


def ask(bound: str, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B, K) lower bounds of margins."""
    kind, _, value = bound.partition(" ")
    if kind == "deployed":
        return ns.certify(model, x, y, BALL, deployed=value).margins
    if kind == "float32":
        return ns.certify(model.float(), x.float(), y, BALL, bound=value).margins
    if kind == "decide":
        return ns.decide(model, x, y, BALL, parts=4).lower
    if kind == "exact":
        return exact(model, x, y, ns.JointBall(1e-3, 0.0, None))
    if kind == "shared":
        return ns.certify(model, x, y, BALL).margins.where(ns.certify_shared(model, x, y, BALL).certified[:, None], -torch.inf)
    return ns.certify(model, x, y, BALL, bound=kind).margins


def columns() -> Iterator[str]:
    yield from BOUNDS
    yield from (f"float32 {b}" for b in ("interval", "crown"))
    yield from ("decide", "exact", "shared", *(f"deployed {t}" for t in ("float32", "bfloat16", "float16")))


def knows(name: str, bound: str) -> bool:
    """Whether the bound takes the network.  AssertionError where a point of the ball beats it, or it is not a number."""
    torch.manual_seed(0)
    model, shape = networks()[name]()
    model = seasoned(model).double().eval()
    x, y = torch.randn(2, *shape, dtype=torch.float64), torch.tensor([0, 2])
    try:
        low = ask(bound, model, x, y)
    except UnsupportedModel:
        return False
    assert not low.isnan().any(), (name, bound)
    model, low = model.double(), low.double()
    with torch.no_grad():
        center = {n: p.detach().clone() for n, p in model.named_parameters()}
        for _ in range(8):
            for n, p in model.named_parameters():
                p.copy_(center[n] + (0 if bound == "exact" else 1e-3) * (2 * torch.rand_like(p) - 1))
            logits = model(x + 1e-3 * (2 * torch.rand_like(x) - 1))
            reached = logits.gather(1, y[:, None]) - logits
            assert (low <= reached + 1e-5).all(), (name, bound)  # what float32 computes of them
    return True


def row(name: str) -> str:
    found = f"| {name} | " + " | ".join("yes" if knows(name, bound) else "no" for bound in columns()) + " |"
    print(found, file=sys.stderr, flush=True)
    return found


def page() -> str:
    heads = list(columns())
    lines = ["| operation | " + " | ".join(heads) + " |", "|---|" + ":-:|" * len(heads), *map(row, networks())]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
