"""runs_of.py - finished runs as tests look into them."""

from pathlib import Path

from nonsingular.evaluation.stored import Against
from nonsingular.runs.jobs import Attacked
from nonsingular.runs.whereabouts import AS_SAID
from nonsingular.settings import EvaluateSettings, checked
from nonsingular.untrusted import read_config


def against(run: Path) -> Against:
    """What the perturbations of a run of `evaluate` are packed against."""
    settings = checked(EvaluateSettings, read_config(run / "config.yaml"))
    job = Attacked(AS_SAID.located(settings, run, ""))
    return Against.of(job.case, job.grid)
