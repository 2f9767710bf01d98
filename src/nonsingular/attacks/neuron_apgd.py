"""neuron_apgd.py - a stronger search over the input and one scalar per neuron: many starts, adaptive steps, then single neurons.

The problem is that of neuron_pgd.py: each example minimises its own margin over (x, s).  Four facts shape the search.

- The last layer needs none: for every z all margins are smallest at once where s_y = -1 and s_j = 1 for j != y.
- With its pattern of active neurons fixed the margin is linear in each single unknown, so it is smallest at an end of each.
- An inactive neuron has no derivative.  Its shift has a better end all the same, because an activation is monotone: that end has
  the opposite sign of the derivative behind the activation.  So gradients go through rho'(v) + LEAK, the values through rho(v).
- What the gradient misses is a neuron that should change sides, with all that follows from it: a jump to the other end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from nonsingular.attacks.neuron_pgd import Shifts, shifts
from nonsingular.errors import InvalidInput
from nonsingular.graph import recording
from nonsingular.margins import check_labels, margins, worst_margin
from nonsingular.threat import JointBall, Perturbation, Scope, largest

LEAK = 0.001
"""What is added to the derivative of every activation: enough to give an inactive neuron a sign, too little to outvote others."""
TARGETS = 9
"""Largest number of classes that get a run of their own."""
FLIPS = 16
"""Neurons whose other end is tried in a round: those whose flip costs least to first order."""
MOVES = 4
"""Moves of all unknowns to the end that the gradient says, in a row."""
MOMENTUM = 0.75
"""Weight of the new step, against the last one.  arXiv:2003.01690, section 3."""
AT_ONCE = 2**20
"""Unknowns that are moved at a time: 4 MB a tensor in float32, so that the passes stay in the cache."""

Loss = Callable[[Tensor], Tensor]
"""(R, B, K) margins over the other classes, infinite at y -> (R, B), to be made small."""


def neuron_apgd(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 8, restarts: int = 24, keep: int = 4,
    rounds: int = 3, verdict: bool = False, scope: Scope = "sample", generator: Generator | None = None,
) -> Perturbation:  # fmt: skip
    """Adaptive gradient descent on the margin over the input and one scalar per neuron; each example has its own W'.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: a dense network, in eval mode.
    steps: of each run.  Runs start at (x, W): on the margin to the runner-up, on the cross-entropy, on the margin to each of the
        TARGETS nearest classes; and at `restarts` random points, corners and others in turn (seed 0 without a `generator`).
    keep: runs with the smallest margins that go on: `steps` more on the margin, then `rounds` of a local search, which flips
        the best single neuron and moves all unknowns to the ends that the gradient says.
    verdict: stop with an example once its prediction has changed; otherwise its margin is minimised to the end.
    `neuron` spends its steps on three runs; here many short ones and the flips reach more for their cost (benchmarks).
    Returns a Perturbation of scope "sample" with the weights written out: memory B x parameters.  Never changes `model`.
    Its margins are never above those at (x, W), but for rounding.
    Raises UnsupportedModel if the model is not dense, InvalidInput if x leaves the domain or for another scope.
    Cost: about (TARGETS + 2 + restarts + 2 keep) x steps passes forward and backward to the inputs, and rounds x keep x FLIPS
    forward.  Source: steps, arXiv:2003.01690; the space, the row lemma of neuron_pgd.py.
    """
    if scope != "sample":
        raise InvalidInput(
            f"attack 'neuron-apgd' gives each example its own weights (scope sample); use 'paper' for scope {scope}"
        )
    if steps < 1 or restarts < 0 or keep < 1 or rounds < 0:
        raise InvalidInput(
            f"steps, restarts, keep, rounds are {steps}, {restarts}, {keep}, {rounds}; give at least 1, 0, 1 and 0"
        )
    with recording(), torch.no_grad():
        network = shifts(model, ball)
        check_labels(y, len(x), len(network.net.weights[-1]))
        x, y = x.detach().clone(), y.long().clone()
        generator = generator or torch.Generator(x.device).manual_seed(0)
        found_x, found_s = x.clone(), network.start(x)
        best = _worst(network, found_x, found_s, y)
        whole = _joint(network, x, y, ball)
        runs = 2 + min(TARGETS, whole.classes - 1) + restarts
        for at in _open(best, verdict).split(max(1, AT_ONCE // (runs * max(1, whole.unknowns)))):
            if not len(at) or not (ball.eps_x or ball.weight_boxes(network.net.params)):
                break
            v = _search(whole.part(at), steps, restarts, keep, rounds, verdict, generator)
            new_x, new_s = whole.part(at).point(v[None])
            new_x = torch.clamp(new_x, whole.lo[at], whole.hi[at]).view_as(x[at])
            margin = _worst(network, new_x, new_s, y[at])
            lower = margin < best[at]
            into = at[lower]
            best[into], found_x[into] = margin[lower], new_x[lower]
            for old, new in zip(found_s, new_s, strict=True):
                old[into] = new[lower]
        return Perturbation(found_x, network.realise(found_x, found_s, ball), "sample").check(model, x, ball)


def _worst(network: Shifts, x: Tensor, s: list[Tensor], y: Tensor) -> Tensor:
    return worst_margin(margins(network(x, s), y), y)


def _open(margin: Tensor, verdict: bool) -> Tensor:
    """The examples to go on with."""
    return (margin >= 0).nonzero().flatten() if verdict else torch.arange(len(margin), device=margin.device)


# --- the unknowns ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Joint:
    """The margins of B examples at v in [-1, 1]^n, n = d + the hidden neurons: inputs lo..hi, and shifts, scaled alike.

    network: with a leak in its gradients.  lo, hi: (B, d) box of the inputs.  y: (B,).  s_last: (B, K) the last layer's shifts.
    free: d, or 0 if the inputs do not move.  widths: of the hidden layers.  flips: hidden neurons that can move, as columns of v.
    """

    network: Shifts
    start: Tensor
    lo: Tensor
    hi: Tensor
    y: Tensor
    s_last: Tensor
    free: int
    widths: tuple[int, ...]
    flips: Tensor

    @property
    def classes(self) -> int:
        return self.s_last.shape[1]

    @property
    def unknowns(self) -> int:
        return self.free + sum(self.widths)

    @property
    def blocks(self) -> list[slice]:
        """Columns that share a step size: inputs, shifts."""
        ends = [0, *({self.free, self.unknowns} - {0})]
        return [slice(a, b) for a, b in pairwise(sorted(ends))]

    def part(self, at: Tensor) -> _Joint:
        rows = {n: getattr(self, n)[at] for n in ("start", "lo", "hi", "y", "s_last")}
        return replace(self, **rows)

    def point(self, v: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Inputs (RB, d) and shifts at v (R, B, n); inputs may leave their box by rounding."""
        R = len(v)
        if self.free:
            x = torch.addcmul((self.lo + self.hi) / 2, (self.hi - self.lo) / 2, v[..., : self.free])
        else:
            x = self.lo.expand(R, *self.lo.shape)
        s = v[..., self.free :].flatten(0, 1).split(self.widths, 1) if self.widths else ()
        return x.flatten(0, 1), [*s, self.s_last.repeat(R, 1)]

    def margins(self, v: Tensor) -> Tensor:
        """(R, B, K) margins at v (R, B, n), infinite at y."""
        y = self.y.repeat(len(v))
        found = margins(self.network(*self.point(v)), y)
        return found.scatter(1, y[:, None], torch.inf).view(*v.shape[:2], -1)

    def slope(self, v: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Value (R, B) and gradient of a loss."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            value = loss(self.margins(v))
            (g,) = torch.autograd.grad(value.sum(), v)
        return value.detach(), g


def _joint(network: Shifts, x: Tensor, y: Tensor, ball: JointBall) -> _Joint:
    rho, net, box = network.net.activation, network.net, ball.input_box(x)

    def leaky(v: Tensor) -> Tensor:
        return rho(v) + LEAK * (v - v.detach()) if v.requires_grad else rho(v)  # v - v is 0, its derivative 1

    widths = tuple(len(W) for W in net.weights[:-1])
    free = x[0].numel() if ball.eps_x and len(x) else 0
    moves = [largest(r) + largest(b) > 0 for r, b in zip(*net.radii(ball), strict=True)][:-1]
    neurons = [torch.full((d,), m) for d, m in zip(widths, moves, strict=True)]
    flips = torch.cat([torch.zeros(free, dtype=torch.bool), *neurons]).nonzero().flatten()
    s_last = x.new_ones(len(x), len(net.weights[-1])).scatter(1, y[:, None], -1.0)
    lo, hi = box.lo.flatten(1), box.hi.flatten(1)
    u = torch.where(hi > lo, (2 * x.flatten(1) - lo - hi) / (hi - lo), 0.0)[:, :free]
    start = torch.cat([u, *network.start(x)[:-1]], 1).clamp_(-1, 1)
    softened = replace(network, net=replace(net, activation=leaky))
    return _Joint(softened, start, lo, hi, y, s_last, free, widths, flips.to(x.device))


# --- the search -----------------------------------------------------------------------------------------------------------


def _search(
    joint: _Joint, steps: int, restarts: int, keep: int, rounds: int, verdict: bool, generator: Generator
) -> Tensor:  # fmt: skip
    """(B, n) the best point of each example."""
    clean = joint.margins(joint.start[None])[0]
    targets = clean.topk(min(TARGETS, joint.classes - 1), 1, largest=False).indices.T[..., None]  # (T, B, 1)
    v = torch.cat([joint.start.expand(2 + len(targets), -1, -1), _random(joint.start, restarts, generator)])
    if not joint.unknowns:
        return v[0]

    def losses(m: Tensor) -> Tensor:
        own = m[1 : 1 + len(targets)].gather(2, targets)[..., 0]
        return torch.cat([m[:1].amin(2), own, _entropy(m[1 + len(targets) : 2 + len(targets)]), m[2 + len(targets) :].amin(2)])

    v = _descend(joint, v, losses, steps)
    margin = _nearest(joint.margins(v))
    chosen = margin.topk(min(keep, len(v)), 0, largest=False).indices
    v, margin = _rows(v, chosen), margin.gather(0, chosen)
    found = v[0].clone()
    todo = torch.arange(len(found), device=v.device)
    for step in range(1 + rounds):
        still = _open(margin.amin(0), verdict)
        found[todo] = _rows(v, margin.argmin(0, keepdim=True))[0]
        todo, joint, v, margin = todo[still], joint.part(still), v[:, still], margin[:, still]
        if not len(todo):
            return found
        if step:
            v, margin = _flip(joint, v, margin)
        else:
            v = _descend(joint, v, _nearest, steps)
            margin = _nearest(joint.margins(v))
        v, margin = _to_the_ends(joint, v, margin)
    found[todo] = _rows(v, margin.argmin(0, keepdim=True))[0]
    return found


def _nearest(m: Tensor) -> Tensor:
    """The margin to the runner-up."""
    return m.amin(-1)


def _entropy(m: Tensor) -> Tensor:
    """-log sum_j exp(-m_j), j != y: cross-entropy is log(1 + exp(-this)), so its gradient has this direction, and never fades."""
    return -torch.logsumexp(-m, -1)


def _random(like: Tensor, count: int, generator: Generator) -> Tensor:
    """(count, *like) points of [-1, 1]^n: uniform, but every other one a corner."""
    v = 2 * torch.rand(count, *like.shape, generator=generator, dtype=like.dtype, device=like.device) - 1
    v[::2] = torch.where(v[::2] < 0, -1.0, 1.0)
    return v


def _rows(v: Tensor, index: Tensor) -> Tensor:
    """v[index[k, b], b] of v (R, B, n)."""
    return v.gather(0, index[..., None].expand(-1, -1, v.shape[2]))


def _checkpoints(steps: int) -> list[int]:
    """Steps after which step sizes are reviewed.  arXiv:2003.01690, section 3."""
    before, now, found = 0.0, 0.22, list[int]()
    while now <= 1:
        found.append(math.ceil(now * steps))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return found


def _descend(joint: _Joint, v: Tensor, loss: Loss, steps: int) -> Tensor:
    """Signed steps on a loss with momentum, from v (R, B, n); the point of each run with the smallest loss.

    Inputs and shifts have their own step size, at first the half width of the box.  At a checkpoint it is halved where more than
    a quarter of the steps went too far (the new gradient points back), and both are where nothing was won; then the run goes on
    from its best point.
    """
    blocks, v = joint.blocks, v.clone()
    before = v
    value, g = joint.slope(v, loss)
    best, best_v, best_sign = value.clone(), v.clone(), g.sign_().clone()
    size = v.new_ones(len(blocks), *value.shape, 1)
    good = torch.zeros_like(size)
    last, won, halved = 0, value, torch.ones_like(value, dtype=torch.bool)
    review = _checkpoints(steps)
    for i in range(1, steps + 1):
        moved = v.clone()
        for k, block in enumerate(blocks):
            moved[..., block].addcmul_(size[k], g[..., block], value=-1)  # g holds signs here
        moved.clamp_(-1, 1)
        if i > 1:  # v + a (moved - v) + (1 - a) (v - before)
            moved.mul_(MOMENTUM).add_(v, alpha=2 - 2 * MOMENTUM).sub_(before, alpha=1 - MOMENTUM).clamp_(-1, 1)
        before, v = v, moved
        value, g = joint.slope(v, loss)
        along = (v - before).mul_(g)
        for k, block in enumerate(blocks):
            good[k] += along[..., block].sum(-1, keepdim=True) <= 0
        g.sign_()
        lower = value < best
        best[lower], best_v[lower], best_sign[lower] = value[lower], v[lower], g[lower]
        if i in review and i < steps:
            stuck = (best >= won) & ~halved
            less = (good < 0.75 * (i - last)) | stuck[..., None]
            size = torch.where(less, size / 2, size)
            halved, won, last = less.any(0)[..., 0], best.clone(), i
            good.zero_()
            for t, kept in ((before, best_v), (v, best_v), (g, best_sign)):
                t[halved] = kept[halved]
    return best_v


def _to_the_ends(joint: _Joint, v: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """The best of v (R, B, n) and MOVES moves of all unknowns to the end that the gradient says."""
    moved = v
    for _ in range(MOVES):
        _, g = joint.slope(moved, _nearest)
        moved = torch.where(g == 0, moved, -g.sign())
        v, margin = _better(v, margin, moved, _nearest(joint.margins(moved)))
    return v, margin


def _flip(joint: _Joint, v: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """The best of v (R, B, n) and the same with one of FLIPS neurons at its other end."""
    count = min(FLIPS, len(joint.flips))
    if not count:
        return v, margin
    _, g = joint.slope(v, _nearest)
    columns = joint.flips[g[..., joint.flips].abs().topk(count, -1, largest=False).indices]  # (R, B, count)
    other = torch.where(v.gather(2, columns) > 0, -1.0, 1.0).to(v)
    tried = v.expand(count, *v.shape).scatter(3, columns.permute(2, 0, 1)[..., None], other.permute(2, 0, 1)[..., None])
    reached = _nearest(joint.margins(tried.flatten(0, 1))).view(count, *margin.shape)
    lowest, which = reached.min(0)
    return _better(v, margin, tried.gather(0, which[None, ..., None].expand(1, *v.shape))[0], lowest)


def _better(v: Tensor, margin: Tensor, other: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
    lower = reached < margin
    return torch.where(lower[..., None], other, v), torch.where(lower, reached, margin)
