"""nonsingular - robustness of neural networks to their inputs and their weights, together.

>>> import torch, nonsingular as ns
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False))
>>> x = torch.rand(5, 4); y = model(x).argmax(1)
>>> surface = ns.evaluate(model, (x, y), eps_x=0.1, eps_w=0.01)
>>> float(surface.accuracy[0, 0])
1.0
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonsingular.attacks.apgd import apgd
    from nonsingular.attacks.flips import Flipped, flip_attack
    from nonsingular.attacks.joint_pgd import joint_pgd
    from nonsingular.attacks.neuron_pgd import neuron_pgd
    from nonsingular.attacks.strongest import alternating, ensemble, strongest
    from nonsingular.bounds.verdicts import Verdicts
    from nonsingular.catalog import Attack, Objective
    from nonsingular.certificates.bits import BitsNeeded, bits_needed
    from nonsingular.certificates.certify import Certificate, certify, decide
    from nonsingular.certificates.flip_verdicts import FlipVerdicts, decide_flips
    from nonsingular.certificates.flips import certify_flips
    from nonsingular.certificates.radii import Front, certified_front, certified_radius
    from nonsingular.certificates.rates import RateCertificate, certify_rate
    from nonsingular.certificates.shared import SharedCertificate, certify_shared
    from nonsingular.certificates.vulnerability import Vulnerability, vulnerability
    from nonsingular.data.datasets import load
    from nonsingular.data.property import Property
    from nonsingular.data.vnnlib import load_property
    from nonsingular.errors import InvalidInput, SoundnessError, UnsupportedModel
    from nonsingular.evaluation.attacked import evaluate
    from nonsingular.evaluation.campaign import campaign
    from nonsingular.evaluation.certified import certified_surface
    from nonsingular.evaluation.masking import Masking, masking
    from nonsingular.evaluation.protection import protection
    from nonsingular.faults.analog import PhaseChange, ReRAM
    from nonsingular.faults.bit_errors import BitErrors
    from nonsingular.faults.fault import Fault, InOrder
    from nonsingular.faults.formats import FixedPoint, FloatFormat
    from nonsingular.faults.quantize import quantize
    from nonsingular.faults.uniform import UniformRounding
    from nonsingular.models.architectures import Averaged, Normalized
    from nonsingular.models.loading import load_model
    from nonsingular.report.figure import contours
    from nonsingular.results.campaign import Campaign
    from nonsingular.results.comparison import Comparison, compare
    from nonsingular.results.protection import Protection
    from nonsingular.results.surface import Surface
    from nonsingular.threat.ball import JointBall
    from nonsingular.threat.perturbation import Perturbation
    from nonsingular.training.objectives import Adversarial, JointlyAdversarial, TheoremRegularised
    from nonsingular.training.train import Trained, train

__version__ = "0.1.0"

_HOME = {
    "JointBall": "threat.ball", "Perturbation": "threat.perturbation",
    **dict.fromkeys(("InvalidInput", "SoundnessError", "UnsupportedModel"), "errors"),
    "joint_pgd": "attacks.joint_pgd", "neuron_pgd": "attacks.neuron_pgd", "apgd": "attacks.apgd",
    **dict.fromkeys(("alternating", "ensemble", "strongest"), "attacks.strongest"),
    "Comparison": "results.comparison", "compare": "results.comparison", "load": "data.datasets", "load_model": "models.loading",
    "Property": "data.property", "load_property": "data.vnnlib",
    **dict.fromkeys(("Averaged", "Normalized"), "models.architectures"),
    **dict.fromkeys(("Masking", "masking"), "evaluation.masking"), "Verdicts": "bounds.branch",
    **dict.fromkeys(("Certificate", "certify", "decide"), "certificates.certify"),
    **dict.fromkeys(("Front", "certified_front", "certified_radius"), "certificates.radii"),
    **dict.fromkeys(("BitsNeeded", "bits_needed"), "certificates.bits"),
    "certify_flips": "certificates.flips",
    **dict.fromkeys(("FlipVerdicts", "decide_flips"), "certificates.flip_verdicts"),
    **dict.fromkeys(("Vulnerability", "vulnerability"), "certificates.vulnerability"),
    **dict.fromkeys(("RateCertificate", "certify_rate"), "certificates.rates"),
    **dict.fromkeys(("SharedCertificate", "certify_shared"), "certificates.shared"),
    "certified_surface": "evaluation.certified", "evaluate": "evaluation.attacked",
    "Surface": "results.surface", "contours": "report.figure",
    **dict.fromkeys(("Attack", "Objective"), "catalog"), **dict.fromkeys(("Trained", "train"), "training.train"),
    **dict.fromkeys(("Fault", "InOrder"), "faults.fault"), "UniformRounding": "faults.uniform",
    **dict.fromkeys(("Flipped", "flip_attack"), "attacks.flips"),
    "Campaign": "results.campaign", "campaign": "evaluation.campaign",
    "Protection": "results.protection", "protection": "evaluation.protection",
    "BitErrors": "faults.bit_errors", **dict.fromkeys(("FixedPoint", "FloatFormat"), "faults.formats"),
    "quantize": "faults.quantize", **dict.fromkeys(("PhaseChange", "ReRAM"), "faults.analog"),
    **dict.fromkeys(("Adversarial", "JointlyAdversarial", "TheoremRegularised"), "training.objectives"),
}  # fmt: skip

_RENAMED = {"verify": "decide"}
"""Old names, which work for a release: `verify` is what `nonsingular verify RUN` does with a run."""

__all__ = [
    "Adversarial",
    "Attack",
    "Averaged",
    "BitErrors",
    "BitsNeeded",
    "Campaign",
    "Certificate",
    "Comparison",
    "Fault",
    "FixedPoint",
    "FlipVerdicts",
    "Flipped",
    "FloatFormat",
    "Front",
    "InOrder",
    "InvalidInput",
    "JointBall",
    "JointlyAdversarial",
    "Masking",
    "Normalized",
    "Objective",
    "Perturbation",
    "PhaseChange",
    "Property",
    "Protection",
    "RateCertificate",
    "ReRAM",
    "SharedCertificate",
    "SoundnessError",
    "Surface",
    "TheoremRegularised",
    "Trained",
    "UniformRounding",
    "UnsupportedModel",
    "Verdicts",
    "Vulnerability",
    "alternating",
    "apgd",
    "bits_needed",
    "campaign",
    "certified_front",
    "certified_radius",
    "certified_surface",
    "certify",
    "certify_flips",
    "certify_rate",
    "certify_shared",
    "compare",
    "contours",
    "decide",
    "decide_flips",
    "ensemble",
    "evaluate",
    "flip_attack",
    "joint_pgd",
    "load",
    "load_model",
    "load_property",
    "masking",
    "neuron_pgd",
    "protection",
    "quantize",
    "strongest",
    "train",
    "vulnerability",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are used: importing the package does not import torch."""
    if (new := _RENAMED.get(name)) is not None:
        warnings.warn(f"nonsingular.{name} is called nonsingular.{new} now", DeprecationWarning, stacklevel=2)
        name = new
    if name not in _HOME:
        raise AttributeError(f"module 'nonsingular' has no attribute '{name}'")
    return getattr(importlib.import_module(f"nonsingular.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
