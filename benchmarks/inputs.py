"""inputs.py - inputs alone (eps_w = 0): `apgd` at three budgets beside torchattacks, Foolbox and ART, accuracy and time.

1,000 MNIST test images, an adversarially trained network, eps_x = 0.1, one thread, everyone the same tensors in one batch, all
in one run.  Accuracy is taken from the inputs that come back.  Peers have their default settings, and torchattacks' attacks 100
steps besides, as in AutoAttack (their default is 10).
Exit code 1 if for some peer none of our budgets is at most 0.2 points above its accuracy in at most its time.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import interleaved, machine, options
from torch import Tensor, nn

from nonsingular.attacks.apgd import apgd
from nonsingular.data.datasets import load
from nonsingular.models.architectures import mlp
from nonsingular.models.loading import load_run
from nonsingular.network.margins import is_correct
from nonsingular.threat.ball import JointBall
from nonsingular.training.train import train

EPS, SLACK = 0.1, 0.002
BUDGETS: dict[str, dict[str, int]] = {
    "apgd, quick": {"steps": 3, "keep": 0},
    "apgd, 3 targets": {"steps": 8, "restarts": 0, "targets": 3, "keep": 2, "rounds": 1},
    "apgd": {},
}
PEERS = {"torchattacks": "torchattacks==3.5.1", "foolbox": "foolbox==3.3.4", "art": "adversarial-robustness-toolbox==1.20.1"}
NEEDED = {
    "eagerpy": "eagerpy", "git": "gitpython gitdb smmap", "six": "six", "scipy": "scipy", "tqdm": "tqdm",
    "sklearn": "scikit-learn joblib threadpoolctl", "requests": "requests urllib3 idna certifi charset-normalizer",
}  # fmt: skip
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def missing() -> str | None:
    """The command that installs what cannot be imported; without dependencies, as some would bring another torch."""
    wanted = [packages for module, packages in (PEERS | NEEDED).items() if importlib.util.find_spec(module) is None]
    return f"pip install --no-deps {' '.join(wanted)}" if wanted else None


def ours(model: nn.Module, x: Tensor, y: Tensor, **budget: Any) -> Tensor:
    return apgd(model, x, y, JointBall(EPS, 0.0), verdict=True, **budget).x


def with_torchattacks(model: nn.Module, x: Tensor, y: Tensor, *, name: str, **settings: Any) -> Tensor:
    import torchattacks

    return getattr(torchattacks, name)(model, eps=EPS, **settings)(x, y)


def with_foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    import foolbox

    return foolbox.attacks.LinfPGD()(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=EPS)[1]


def with_art(model: nn.Module, x: Tensor, y: Tensor, *, name: str) -> Tensor:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = getattr(evasion, name)(classifier, eps=EPS, batch_size=len(x), verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


THEIRS: dict[str, Attack] = {
    "torchattacks APGD, 10 steps": partial(with_torchattacks, name="APGD"),
    "torchattacks APGD, 100 steps": partial(with_torchattacks, name="APGD", steps=100),
    "torchattacks APGDT, 10 steps": partial(with_torchattacks, name="APGDT"),
    "torchattacks APGDT, 100 steps": partial(with_torchattacks, name="APGDT", steps=100),
    "Foolbox LinfPGD, 40 steps": with_foolbox,
    "ART PGD, 100 steps": partial(with_art, name="ProjectedGradientDescent"),
    "ART AutoPGD, 5 x 100 steps": partial(with_art, name="AutoProjectedGradientDescent"),
}


def main() -> int:
    parser = options(__doc__, images=1000, repeat=3)
    parser.add_argument("--run", type=Path, help="run directory of an adversarially trained MNIST network (default: trains one)")
    args = parser.parse_args()
    if command := missing():
        print(f"this comparison needs packages that are not installed: {command}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")  # theirs
    torch.set_num_threads(1)
    print(machine())
    data = load("mnist", args.data_dir)
    if args.run:
        model = load_run(args.run)[0]
    else:
        torch.manual_seed(0)
        model = train(mlp((1, 28, 28), 10), data, method="at", eps_x=EPS).model
    model = model.eval().requires_grad_(False)
    x, y = data.test.x[: args.images], data.test.y[: args.images].long()

    attacks: dict[str, Attack] = {name: partial(ours, **budget) for name, budget in BUDGETS.items()} | THEIRS
    found: dict[str, Tensor] = {}

    def call(name: str) -> None:
        found[name] = attacks[name](model, x, y)

    seconds = interleaved({name: partial(call, name) for name in attacks}, args.repeat)
    accuracy = {name: is_correct(model(z), y).double().mean().item() for name, z in found.items()}
    assert all(bool(((z - x).abs() <= EPS + 1e-6).all()) for z in found.values())
    print(f"\n{len(x)} images, eps_x = {EPS:g}, clean accuracy {100 * is_correct(model(x), y).double().mean():.1f} %")
    print(f"{'':32} accuracy %  seconds   matched by")
    unmatched = 0
    for name in attacks:
        as_good = [n for n in BUDGETS if accuracy[n] <= accuracy[name] + SLACK and median(seconds[n]) <= median(seconds[name])]
        unmatched += name in THEIRS and not as_good
        said = (", ".join(as_good) or "none") if name in THEIRS else ""
        print(f"{name:32} {100 * accuracy[name]:10.1f} {median(seconds[name]):8.2f}   {said}")
    print(f"\npeers that none of our budgets matches = {unmatched}, target 0: {'MISSED' if unmatched else 'met'}")
    return int(unmatched > 0)


if __name__ == "__main__":
    sys.exit(main())
