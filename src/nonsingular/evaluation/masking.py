"""masking.py - signs that an attack fails because gradients are hidden or useless, not because the model is robust.

The questions are those of Athalye et al., arXiv:1802.00420, and Carlini et al., arXiv:1902.06705, asked of inputs and of weights.
A flag says that an attacked accuracy may be far above the truth; the absence of flags proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nonsingular.attacks.corners import corners
from nonsingular.attacks.square import square
from nonsingular.catalog import Attack, declared
from nonsingular.data.datasets import as_tensors
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.problem import Case, Method, attack_of
from nonsingular.network import memory
from nonsingular.network.calling import logits_at, outputs, recording
from nonsingular.network.margins import is_correct, margins, worst_margin
from nonsingular.network.memory import halving
from nonsingular.network.passes import count
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall, Scope, check_scope
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

SHARE = 0.05
"""Fraction of the examples that raises a flag."""
CHANCE = 0.01
"""Largest probability of a difference between two attacks that is not taken for chance (one-sided sign test)."""
VANISHED = 0.001
"""A gradient has vanished if it promises less than this fraction of what random corners of the same box reach."""
CORNERS = 8
"""Random corners of each box."""
EXAMPLES: Mapping[Scope, int] = {"sample": 64, "batch": 256, "dataset": 256}
"""Examples used by default."""
PROBES = 64
"""Examples whose gradients are looked at."""
GLIMPSED = 16
"""Examples whose gradients every run looks at."""
SEARCHED, TRIALS = 32, 100
"""Survivors that every run gives to random search, and trials of each."""


PLAIN = Method.of("paper")


@dataclass(frozen=True)
class Masking:
    """What was found about one attack on one model.

    flags: name -> one sentence that says why; empty if nothing was found.  numbers: what the checks measured, all of them.
    Names: zero-gradient, saturation, random, gradient-free, budget, one-class.
    """

    attack: str
    scope: Scope
    examples: int
    flags: Mapping[str, str]
    numbers: Mapping[str, float]

    def __post_init__(self) -> None:
        for name in ("flags", "numbers"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def inconclusive(self) -> bool:
        """Whether the attack broke every example, so that the checks that compare accuracies had nothing to compare."""
        return not self.numbers.get("accuracy", 1.0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "attack": self.attack, "scope": self.scope, "examples": self.examples,
            "flags": dict(self.flags), "numbers": dict(self.numbers), "inconclusive": self.inconclusive,
        }  # fmt: skip

    def __str__(self) -> str:
        asked = f"attack '{self.attack}', scope {self.scope}, {self.examples} examples"
        if not self.flags and self.inconclusive:
            return f"nothing to say about masked gradients: every example is broken, choose a smaller ball ({asked})"
        if not self.flags:
            return f"no sign of masked gradients ({asked})"
        return "\n".join([f"signs of masked gradients ({asked}):", *(f"  {name}: {why}" for name, why in self.flags.items())])


def masking(
    model: nn.Module, data: Any, ball: JointBall, *, scope: Scope = "sample", attack: str | Attack | Callable[..., Any] = "paper",
    batch_size: int | None = None, limit: int | None = None, seed: int = 0,
) -> Masking:  # fmt: skip
    """Whether `attack` on `model` shows signs of masked gradients at `ball`.

    data: as in `evaluate`, x (N, *input) in ball.domain and y (N,) class indices.
    limit: how many are used, drawn with `seed`; by default 256, and 64 in scope `sample`, where memory and time grow with
        B x parameters.
    model: (B, *input) -> (B, K) logits, in eval mode; never changed.  attack: a name of the catalog, or a function.
    batch_size: in scope `batch`, how many share W'; by default all that are used.
    zero-gradient: the margin has no gradient with respect to the inputs or to a tensor of weights, or less than a
        thousandth of what random corners of the same box do to it.
    saturation: the gradient of the cross-entropy is 0 in this float type where that of the margin is not.
    random: two forward passes differ.
    gradient-free: Square (inputs alone) or corners (weights alone) reach a lower accuracy than the attack does there.
    budget: a larger ball (twice the radii, or both radii against one alone) or twice the steps leave a higher accuracy.
    one-class: all predictions under the attack are the same class.
    Two accuracies differ where their difference is at least 5 points and beyond chance.  Choose a ball in which some examples
        survive and some do not: where all are broken, the checks that compare accuracies have nothing to compare.
    Raises InvalidInput as `attack` and for unusable data.  Cost: 6 runs of the attack, and 900 passes without gradients.
    """
    check_scope(scope)
    limit = EXAMPLES[scope] if limit is None else limit
    if limit < 1:
        raise InvalidInput(f"limit is {limit}; give 1 or more examples")
    if batch_size is not None and batch_size < 1:
        raise InvalidInput(f"batch_size is {batch_size}; give 1 or more")
    entry = attack_of(attack)
    x, y = as_tensors(data)
    found = _Found({}, {})
    with recording(), _own_stream(x), torch.no_grad():
        case = Case.of(model, x, y, ball)
        check_inputs(case.network, x, y, ball, random=True)
        chosen = torch.randperm(len(x), generator=Generator().manual_seed(seed))[:limit].sort().values.to(x.device)
        probe = _Probe(case.part(chosen), ball, Method(entry, scope, batch_size or limit), seed)
        _check_random(probe, found)
        _check_gradients(probe, found)
        _check_attack(probe, found)
    return Masking(entry.name, scope, len(chosen), found.flags, found.numbers)


def doubts_of_gradients(case: Case, ball: JointBall, survivors: Tensor, inputs: JointBall | None) -> list[str]:
    """What an attack with gradients may have missed, as sentences; few and cheap signs, for every run.  `masking` looks closer.

    ball: the largest of the run; gradients of GLIMPSED examples are held against random corners in it.
    survivors: (k,) numbers of examples that the attack left right at the ball `inputs`, where weights do not move; Square then
    tries some of them.  inputs: None if there is no such ball.
    Cost: GLIMPSED backward passes, CORNERS passes for each tensor that moves, SEARCHED x TRIALS passes of one example.
    """
    found = _Found({}, {})
    n, device = len(case), case.x.device
    some = torch.linspace(0, n - 1, min(n, GLIMPSED), device=device).long()
    with recording(), _own_stream(case.x), torch.no_grad():
        _check_gradients(_Probe(case.part(some), ball), found)
        doubts = [f"{why} Attacks that follow gradients may miss much ({name})." for name, why in found.flags.items()]
        left = survivors[torch.linspace(0, len(survivors) - 1, min(len(survivors), SEARCHED), device=device).long()]
        if inputs is not None and inputs.moves_inputs and len(left):
            tried = case.part(left)
            point = square(case.network, tried.x, tried.y, inputs, steps=TRIALS, scope="sample")
            broken = int((~is_correct(logits_at(case.network, point), tried.y)).sum())
            if broken >= max(2, SHARE * len(left)):
                doubts.append(
                    f"random search breaks {broken} of {len(left)} examples that the attack left right on the inputs alone: the "
                    "attacked accuracy is too high. Look closer with --masking, and take the "
                    "worst of two attacks, e.g. strongest+square."
                )
    return doubts


@dataclass(frozen=True)
class _Found:
    flags: dict[str, str]
    numbers: dict[str, float]

    def flag(self, name: str, why: str) -> None:
        self.flags[name] = f"{self.flags[name]} {why}" if name in self.flags else why


@dataclass(frozen=True, eq=False)
class _Probe:
    """What is looked at: examples, a ball around them, and an attack."""

    case: Case
    ball: JointBall
    method: Method = PLAIN
    seed: int = 0

    def right(self, attack: Attack, ball: JointBall) -> tuple[Tensor, Tensor]:
        """(B,) which examples survive, and their predictions, from the tensors that the attack returns."""
        case, scope = self.case, self.method.scope
        whole = len(case)
        if scope == "sample":
            moving = sum(box.lo.numel() for box in ball.weight_boxes(dict(case.network.named_parameters())).values())
            whole = max(1, min(whole, memory.room(case.x) // max(1, 4 * moving)))
        elif scope == "batch":
            whole = self.method.batch_size
        logits: list[Tensor] = []
        for x, y in zip(case.x.split(whole), case.y.split(whole), strict=True):
            point = attack(case.network, x, y, ball, scope=scope).check(case.network, x, ball)
            logits.append(logits_at(case.network, point))
        out = torch.cat(logits)
        return is_correct(out, case.y), out.argmax(1)


def _own_stream(x: Tensor) -> AbstractContextManager[None]:
    """The global generators are restored afterwards."""
    return torch.random.fork_rng([x.device] if x.device.type == "cuda" else [])


# --- the network ----------------------------------------------------------------------------------------------------------


def _check_random(probe: _Probe, found: _Found) -> None:
    torch.manual_seed(probe.seed)
    first, second = (logits_at(probe.case.network, Perturbation(probe.case.x)) for _ in range(2))
    apart = ((first - second).abs().max() / first.abs().max().clamp(min=torch.finfo(first.dtype).tiny)).item()
    found.numbers["random"] = apart
    if not apart <= 100 * torch.finfo(first.dtype).eps:
        found.flag("random", f"two forward passes on the same inputs differ, by up to {apart:.2g} of the largest logit.")


def _check_gradients(probe: _Probe, found: _Found) -> None:
    """Gradients at (x, W) of the margin and of the cross-entropy, for each input and each tensor that moves."""
    case, ball, seed = probe.case, probe.ball, probe.seed
    torch.manual_seed(seed)
    at = is_correct(logits_at(case.network, Perturbation(case.x)), case.y).nonzero().flatten()[:PROBES]
    if not len(at):
        return
    x, y = case.x[at], case.y[at]
    boxes: dict[str, Interval] = {"inputs": ball.input_box(x)} if ball.moves_inputs else {}
    weights = ball.weight_boxes(dict(case.network.named_parameters()))
    boxes |= {f"weight {name}": box for name, box in weights.items()}
    with case.network.lent() as moving:
        promised, silent = _promises(moving, x, y, boxes, list(weights), seed)
        attained = _falls(moving, x, y, boxes, list(weights), seed)
    hidden = {block: share(p < VANISHED * attained[block]) for block, p in promised.items()}
    lost = {block: share(silent[block] & (p > 0)) for block, p in promised.items()}
    for kind, blocks in (("x", [b for b in boxes if b == "inputs"]), ("w", [b for b in boxes if b != "inputs"])):
        if blocks:
            found.numbers[f"no_margin_gradient_{kind}"] = max(hidden[b] for b in blocks)
            found.numbers[f"no_entropy_gradient_{kind}"] = max(share(silent[b]) for b in blocks)
    worst = max(hidden, key=lambda b: hidden[b], default="")
    if worst and hidden[worst] >= SHARE:
        found.flag(
            "zero-gradient",
            f"the margin of {hidden[worst]:.0%} of the examples has next to no gradient for {worst}, but random moves lower it.",
        )
    most = max(lost.values(), default=0.0)
    if most >= SHARE:
        found.flag("saturation", f"the cross-entropy of {most:.0%} of the examples has gradient 0 where their margin has one.")


def _promises(
    moving: nn.Module, x: Tensor, y: Tensor, boxes: Mapping[str, Interval], names: Sequence[str], seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each box (B,): how far the margin falls in it to first order, and whether the cross-entropy has no gradient."""
    params = dict(moving.named_parameters())
    promised: dict[str, list[Tensor]] = {block: [] for block in boxes}
    silent: dict[str, list[Tensor]] = {block: [] for block in boxes}
    for i in range(len(x)):
        with recording():
            points = [x[i : i + 1].clone().requires_grad_(), *(params[n].requires_grad_() for n in names)]
            torch.manual_seed(seed)
            count(forward=1, backward=2)
            logits = outputs(moving, points[0].clone())
            margin = worst_margin(margins(logits, y[i : i + 1]), y[i : i + 1]).sum()
            entropy = nn.functional.cross_entropy(logits, y[i : i + 1])
            g, e = (_gradient(loss, points) for loss in (margin, entropy))
        first = 0 if "inputs" in boxes else 1
        for (block, box), t, g_t, e_t in zip(boxes.items(), points[first:], g[first:], e[first:], strict=True):
            part = Interval(box.lo[i : i + 1], box.hi[i : i + 1]) if block == "inputs" else box
            t = t.detach()
            promised[block].append((g_t * torch.where(g_t > 0, t - part.lo, t - part.hi)).sum())  # max of g (t - t') over the box
            silent[block].append(~e_t.any())
    return {b: torch.stack(v) for b, v in promised.items()}, {b: torch.stack(v) for b, v in silent.items()}


def _gradient(loss: Tensor, points: Sequence[Tensor]) -> Sequence[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in points]
    return torch.autograd.grad(loss, points, retain_graph=True, allow_unused=True, materialize_grads=True)


def _falls(
    moving: nn.Module, x: Tensor, y: Tensor, boxes: Mapping[str, Interval], names: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """For each box (B,): how far the margin falls at the best of some random corners; less than rounding counts as nothing.

    Weights take one sign for each row: after a ReLU these are the corners that matter.  The network draws the same numbers in
    every pass, so that noise does not look like a fall.
    """
    generator = Generator(x.device).manual_seed(seed)
    params = dict(moving.named_parameters())

    def margin(inputs: Tensor) -> Tensor:
        def run(size: int) -> Tensor:
            torch.manual_seed(seed)
            count(forward=len(inputs))
            logits = torch.cat([outputs(moving, part.clone()) for part in inputs.split(size)])
            return worst_margin(margins(logits, y), y)

        return halving(run, len(inputs))

    def corner(box: Interval, shape: Sequence[int]) -> Tensor:
        high = torch.rand(tuple(shape), generator=generator, device=x.device) < 0.5
        return torch.where(high, box.hi, box.lo)

    clean = margin(x)
    found = {block: torch.zeros_like(clean) for block in boxes}
    for block, box in boxes.items():
        for _ in range(CORNERS):
            if block == "inputs":
                reached = margin(corner(box, x.shape))
            else:
                p = params[block.removeprefix("weight ")]
                kept = p.detach().clone()
                p.data.copy_(corner(box, [len(p), *[1] * (p.dim() - 1)] if p.dim() else []))
                reached = margin(x)
                p.data.copy_(kept)
            found[block] = torch.maximum(found[block], clean - reached)
        rounding = 100 * torch.finfo(x.dtype).eps * (1 + clean.abs())
        found[block] = torch.where(found[block] > rounding, found[block], 0.0)
    return found


def share(flags: Tensor) -> float:
    """Part that is true."""
    return flags.double().mean().item()


# --- the attack -----------------------------------------------------------------------------------------------------------


def _check_attack(probe: _Probe, found: _Found) -> None:
    case, ball, attack = probe.case, probe.ball, probe.method.attack
    torch.manual_seed(probe.seed)
    moves = bool(ball.radii(dict(case.network.named_parameters())))
    right, predictions = probe.right(attack, ball)
    found.numbers["accuracy"] = share(right)
    if len(case.y.unique()) > 1 and len(predictions.unique()) == 1:
        found.flag("one-class", f"every prediction under the attack is class {int(predictions[0])}.")

    def more(what: str, after: Tensor, before: str, less: Tensor) -> None:
        if differs(lower=less, higher=after):
            found.flag("budget", f"{what} leaves accuracy {share(after):.1%}, {before} {share(less):.1%}.")

    doubled = [("twice the radii", attack, ball.scaled(2, 2))]
    if attack.steps is not None:
        doubled.append(("twice the steps", replace(attack, what=partial(attack, steps=2 * attack.steps)), ball))
    for what, stronger, larger in doubled:
        after, _ = probe.right(stronger, larger)
        found.numbers[f"accuracy_{what.replace(' ', '_')}"] = share(after)
        more(what, after, "once", right)

    generators = [Generator(case.x.device).manual_seed(probe.seed) for _ in range(2)]
    alone: list[tuple[str, JointBall, Attack]] = []
    if ball.moves_inputs:
        alone.append(("inputs", ball.scaled(1, 0), declared(partial(square, generator=generators[0]))))
    if moves:
        alone.append(("weights", ball.scaled(0, 1), declared(partial(corners, generator=generators[1]))))
    for what, smaller, search in alone:
        with_gradient = probe.right(attack, smaller)[0] if len(alone) > 1 else right
        without, _ = probe.right(search, smaller)
        found.numbers[f"accuracy_{what}_alone"] = share(with_gradient)
        found.numbers[f"accuracy_{what}_gradient_free"] = share(without)
        more("moving inputs and weights", right, f"moving the {what} alone", with_gradient)
        if differs(lower=without, higher=with_gradient):
            found.flag(
                "gradient-free",
                f"on the {what} alone random search leaves accuracy {share(without):.1%}, "
                f"'{attack.name}' {share(with_gradient):.1%}.",
            )


def differs(*, lower: Tensor, higher: Tensor) -> bool:
    """Whether fewer examples survive in `lower` than in `higher`: by SHARE or more, and beyond chance in a one-sided sign test.

    Of the n examples that survive one of the two alone, m or more survive `higher` with probability
    2^-n sum_{k >= m} C(n, k) if each side is as likely.
    """
    up, down = int((higher & ~lower).sum()), int((lower & ~higher).sum())
    chance = sum(math.comb(up + down, k) for k in range(up, up + down + 1)) / 2 ** (up + down)
    return up - down >= SHARE * len(lower) and up > down and chance < CHANCE
