"""A tabular model: which of three cultivars a wine is from, by 13 measurements.  What if sensors and weights are both off?

Data: UCI Wine, 178 wines; Aeberhard and Forina, doi:10.24432/C5PC7J, CC BY 4.0, as in wine.csv beside this file.
Run: python examples/tabular.py          (seconds)
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import nonsingular as ns


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Each measurement as a fraction of its range, so that one radius fits all: 0.05 is 5 % of the range."""
    table = np.loadtxt(Path(__file__).with_name("wine.csv"), delimiter=",", skiprows=1)
    order = np.random.default_rng(0).permutation(len(table))
    x, y = table[order, :-1], table[order, -1]
    x = (x - x.min(0)) / (x.max(0) - x.min(0))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.long)


def trained(x: torch.Tensor, y: torch.Tensor, decay: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
    return ns.train(
        model, (x, y), epochs=200, batch_size=len(x), optimizer="adamw", lr=0.02, weight_decay=decay, schedule="constant"
    ).model


def main() -> dict[str, ns.Surface]:
    x, y = data()
    train, test = slice(0, 100), slice(100, None)
    surfaces: dict[str, ns.Surface] = {}
    for name, decay in (("plain", 0.0), ("weight decay", 1.0)):
        model = trained(x[train], y[train], decay)
        # weight radii are shares of the largest weight of each tensor: 0.033 is half a step of 5 bits
        surface = ns.evaluate(
            model, (x[test], y[test]), eps_x=[0, 0.025, 0.05, 0.1], eps_w=[0, 0.01, 0.02, 0.04], relative=True, certify="crown"
        )
        print(f"{name}\n{surface}\n")
        surfaces[name] = surface
    return surfaces


if __name__ == "__main__":
    main()
