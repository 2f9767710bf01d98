"""oracle.py - slow, obvious twins of Theorem 1 and of joint PGD, and brute force over the joint ball.

Written from arXiv:2102.11935 and from the repair of its theorem, before the package and apart from it: nothing here
imports `nonsingular`.  A dense net is a list of matrices (out, in) and a list of biases (or None), one per layer.
"""

from __future__ import annotations

import copy
import fractions
import itertools
import math

import torch
from torch.nn import functional as F

# ---------------------------------------------------------------- Theorem 1, nested loops over Python floats


def relu(v):
    return max(v, 0.0)


def sigmoid(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def row_difference(last, i, j):
    total = 0.0
    for k in range(len(last[0])):
        total += abs(last[i][k] - last[j][k])
    return total


def largest_row_sum(matrix):
    largest = 0.0
    for row in matrix:
        total = 0.0
        for w in row:
            total += abs(w)
        largest = max(largest, total)
    return largest


def tau(weights, eps_x, eps_w):
    """tau[i][j] = eps_x (||W^L_i - W^L_j||_1 + 2 d_L eps_L) prod_{m<L} (||W^m||_inf + d_m eps_m)."""
    last = weights[-1]
    table = []
    for i in range(len(last)):
        row = []
        for j in range(len(last)):
            value = eps_x * (row_difference(last, i, j) + 2 * len(last[0]) * eps_w[-1])
            for m in range(len(weights) - 1):
                value *= largest_row_sum(weights[m]) + len(weights[m][0]) * eps_w[m]
            row.append(value)
        table.append(row)
    return table


def printed_activations(x, weights, biases, eps_w, eps_b, rho=relu):
    """h^0 = x, then h^k under W^1 + sgn(x_j) eps_1 and W^m + eps_m (m >= 2), as the paper prints it."""
    h, out = list(x), [list(x)]
    for k in range(len(weights) - 1):
        following = []
        for r in range(len(weights[k])):
            y = biases[k][r] + eps_b[k] if biases[k] is not None else 0.0
            for c in range(len(h)):
                sign = (h[c] > 0) - (h[c] < 0) if k == 0 else 1
                y += (weights[k][r][c] + sign * eps_w[k]) * h[c]
            following.append(rho(y))
        h = following
        out.append(h)
    return out


def repaired_activations(x, weights, biases, eps_w, eps_b, rho=relu):
    """u^0 = x, then an upper bound of every activation over the weight ball: each product at its worst corner."""
    lower, upper, out = list(x), list(x), [list(x)]
    for k in range(len(weights) - 1):
        next_lower, next_upper = [], []
        for r in range(len(weights[k])):
            y_lower = biases[k][r] - eps_b[k] if biases[k] is not None else 0.0
            y_upper = biases[k][r] + eps_b[k] if biases[k] is not None else 0.0
            for c in range(len(upper)):
                corners = []
                for w in (weights[k][r][c] - eps_w[k], weights[k][r][c] + eps_w[k]):
                    for z in (lower[c], upper[c]):
                        corners.append(w * z)
                y_lower += min(corners)
                y_upper += max(corners)
            next_lower.append(rho(y_lower))
            next_upper.append(rho(y_upper))
        lower, upper = next_lower, next_upper
        out.append(upper)
    return out


def zeta_with(activations, weights, biases, eps_w, eps_b):
    """||W^L_i - W^L_j||_1 sum_{k<L} (eps_k ||h^{k-1}||_1 + eps_b) prod_{k<m<L} ||W^m||_inf + 2 (eps_L ||h^{L-1}||_1 + eps_b)."""
    last, depth = weights[-1], len(weights)
    moved = []
    for k in range(depth):
        total = 0.0
        for v in activations[k]:
            total += abs(v)
        moved.append(eps_w[k] * total + (eps_b[k] if biases[k] is not None else 0.0))
    table = []
    for i in range(len(last)):
        row = []
        for j in range(len(last)):
            inner = 0.0
            for k in range(depth - 1):
                term = moved[k]
                for m in range(k + 1, depth - 1):
                    term *= largest_row_sum(weights[m])
                inner += term
            row.append(row_difference(last, i, j) * inner + 2 * moved[-1])
        table.append(row)
    return table


def zeta(x, weights, biases, eps_w, eps_b, rho=relu):
    return zeta_with(repaired_activations(x, weights, biases, eps_w, eps_b, rho), weights, biases, eps_w, eps_b)


def zeta_printed(x, weights, biases, eps_w, eps_b, rho=relu):
    return zeta_with(printed_activations(x, weights, biases, eps_w, eps_b, rho), weights, biases, eps_w, eps_b)


def logits(x, weights, biases, rho=relu):
    z = list(x)
    for k in range(len(weights)):
        y = []
        for r in range(len(weights[k])):
            total = biases[k][r] if biases[k] is not None else 0.0
            for c in range(len(z)):
                total += weights[k][r][c] * z[c]
            y.append(rho(total) if k < len(weights) - 1 else total)
        z = y
    return z


# ---------------------------------------------------------------- brute force over the joint ball


class Ball:
    """Every (x', W', b') of the ball as one flat vector: lo <= v <= hi.  Tensors of float64; v is x, W^1, b^1, W^2, ..."""

    def __init__(self, x, weights, biases, eps_x, eps_w, eps_b, domain=None, rho=torch.relu):
        self.x, self.weights, self.biases, self.rho = x, weights, biases, rho
        self.eps_x, self.eps_w, self.eps_b, self.domain = eps_x, eps_w, eps_b, domain
        parts, radii = [x], [torch.full_like(x, eps_x)]
        for k, weight in enumerate(weights):
            parts.append(weight.reshape(-1))
            radii.append(torch.full_like(parts[-1], eps_w[k]))
            if biases[k] is not None:
                parts.append(biases[k])
                radii.append(torch.full_like(parts[-1], eps_b[k]))
        self.centre, radius = torch.cat(parts), torch.cat(radii)
        self.lo, self.hi = self.centre - radius, self.centre + radius
        if domain is not None:
            self.lo[: len(x)].clamp_(*domain)
            self.hi[: len(x)].clamp_(*domain)
        self.free = (self.hi > self.lo).nonzero().flatten().tolist()

    def outputs(self, points):
        """Logits (N, K) at N points (N, P)."""
        z, at = points[:, : len(self.x)], len(self.x)
        for k, weight in enumerate(self.weights):
            matrices = points[:, at : at + weight.numel()].reshape(-1, *weight.shape)
            at += weight.numel()
            y = (matrices * z[:, None, :]).sum(2)
            if self.biases[k] is not None:
                y = y + points[:, at : at + len(self.biases[k])]
                at += len(self.biases[k])
            z = self.rho(y) if k < len(self.weights) - 1 else y
        return z

    def place(self, u):
        """Points from coordinates (N, free) in [0, 1]."""
        points = self.centre.repeat(len(u), 1)
        points[:, self.free] = torch.where(u == 1, self.hi[self.free], torch.lerp(self.lo[self.free], self.hi[self.free], u))
        return points

    def corner_margins(self, y, limit=2**14, draws=2**11, generator=None):
        """Lowest margin found of class y over each class, (K,): all corners, or random corners, interior points, ascent."""
        if 2 ** len(self.free) <= limit:
            u = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(self.free))), dtype=torch.float64)
            return self.margins(u.reshape(2 ** len(self.free), len(self.free)), y).amin(0)
        u = torch.rand(2 * draws, len(self.free), generator=generator, dtype=torch.float64)
        u[:draws] = u[:draws].round()
        found = self.margins(u, y)
        return torch.stack([self.ascend(u[found[:, j].argmin()], y, j) for j in range(found.shape[1])])

    def margins(self, u, y):
        out = self.outputs(self.place(u))
        return out[:, y : y + 1] - out

    def ascend(self, u, y, j, rounds=40):
        """Set one coordinate at a time to its better end, as long as the margin of y over j falls."""
        best, n = self.margins(u[None], y)[0, j], len(u)
        for _ in range(rounds):
            tries = u.repeat(2 * n, 1)
            tries[range(n), range(n)] = 0.0
            tries[range(n, 2 * n), range(n)] = 1.0
            values = self.margins(tries, y)[:, j]
            if not values.min() < best:
                break
            best, u = values.min(), tries[values.argmin()]
        return best

    def row_margins(self, y, limit=2**12, generator=None):
        """The same by one scalar s in {-1, 1} per neuron: y = W z + b + s (eps_w ||z||_1 + eps_b), realised by an explicit W'."""
        n, rows = len(self.x), sum(len(weight) for weight in self.weights)
        if 2 ** (n + rows) <= limit:
            u = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n + rows)), dtype=torch.float64)
        else:
            u = torch.rand(limit, n + rows, generator=generator, dtype=torch.float64).round()
        z, s, at = torch.where(u[:, :n] == 1, self.hi[:n], self.lo[:n]), 2 * u - 1, n
        for k, weight in enumerate(self.weights):
            shift, bias = self.eps_w[k] * z.abs().sum(1, keepdim=True), 0.0
            if self.biases[k] is not None:
                shift, bias = shift + self.eps_b[k], self.biases[k]
            out = z @ weight.T + bias + s[:, at : at + len(weight)] * shift
            at += len(weight)
            z = self.rho(out) if k < len(self.weights) - 1 else out
        return (z[:, y : y + 1] - z).amin(0)

    def worst_margins(self, y, **settings):
        """Lowest margins found by any of the searches, (K,): each is attained, so no lower bound may lie above it."""
        rows = self.row_margins(y, generator=settings.get("generator"))
        return torch.minimum(self.corner_margins(y, **settings), rows)


# ---------------------------------------------------------------- joint PGD, plain autograd


def furthest(t, radius):
    """The largest number of t's kind that is not above t + radius, in rational arithmetic."""
    found = (t.double() + radius).to(t.dtype)
    above = [
        fractions.Fraction(f) > fractions.Fraction(a) + fractions.Fraction(radius)
        for f, a in zip(found.flatten().tolist(), t.flatten().tolist(), strict=True)
    ]
    below = torch.nextafter(found, torch.full_like(found, -math.inf))
    return torch.where(torch.tensor(above).view_as(found), below, found)


def joint_pgd(model, x, y, eps_x, radii, domain, *, steps, step_x=0.01, step_w=5e-4, chunk=None):
    """x' and {name: W'} after `steps` signed steps on a copy of `model`, from (x, W); radii: name -> radius > 0."""
    twin, adv = copy.deepcopy(model).requires_grad_(True), x.clone()
    moving = {name: p for name, p in twin.named_parameters() if name in radii}
    low = {name: -furthest(-p.detach(), radii[name]) for name, p in moving.items()}
    high = {name: furthest(p.detach(), radii[name]) for name, p in moving.items()}
    lo, hi = -furthest(-x, eps_x), furthest(x, eps_x)
    if domain is not None:
        lo, hi = lo.clamp(*domain), hi.clamp(*domain)
    for _ in range(steps):
        twin.zero_grad()
        gradients = []
        for inputs, labels in zip(adv.split(chunk or len(x)), y.split(chunk or len(x)), strict=True):
            inputs = inputs.clone().requires_grad_()
            share = 1 if len(inputs) == len(x) else len(inputs) / len(x)  # the mean over all of x, chunk by chunk
            (F.cross_entropy(twin(inputs), labels) * share).backward()
            gradients.append(inputs.grad)
        adv = (adv + step_x * torch.cat(gradients).sign()).clamp(lo, hi)
        for name, p in moving.items():
            if p.grad is not None:
                p.data = (p.data + step_w * p.grad.sign()).clamp(low[name], high[name])
    return adv, {name: p.detach() for name, p in moving.items()}
