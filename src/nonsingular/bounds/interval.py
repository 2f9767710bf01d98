"""interval.py - interval bounds over inputs and weights.  Gowal et al., arXiv:1810.12715; weights: arXiv:2102.11935."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nonsingular.graph import Dense


def hidden_upper_bounds(net: Dense, x: Tensor, eps_w: list[float], eps_b: list[float]) -> list[Tensor]:
    """Upper bounds u^k >= z'^k of the activations k = 1..L-1 at the *natural* x, over all weights and biases in their balls.

    x: (B, *input), signed or not.  Returns L-1 tensors (B, d_k).  Needs a monotone, non-negative activation.
    Cost: one forward pass for layer 1, two products a side for each further layer.
    """
    bounds: list[Tensor] = []
    z = x.flatten(1)
    lo = hi = z
    for k, (W, b) in enumerate(zip(net.weights[:-1], net.biases[:-1], strict=True)):
        if k == 0:  # row lemma at a point: {(W + D) x : |D| <= eps} = W x +- eps ||x||_1, both ends attained
            centre = F.linear(z, W)
            spread = eps_w[0] * z.abs().sum(1, keepdim=True)
            lo, hi = centre - spread, centre + spread
        else:  # 0 <= l <= z <= u, w in [p, q]  =>  p+ l + p- u <= w z <= q+ u + q- l
            p, q = W - eps_w[k], W + eps_w[k]
            lo, hi = (
                F.linear(lo, p.clamp(min=0)) + F.linear(hi, p.clamp(max=0)),
                F.linear(hi, q.clamp(min=0)) + F.linear(lo, q.clamp(max=0)),
            )
        if b is not None:
            lo, hi = lo + (b - eps_b[k]), hi + (b + eps_b[k])
        lo, hi = net.activation(lo), net.activation(hi)  # monotone: ends map to ends
        bounds.append(hi)
    return bounds
