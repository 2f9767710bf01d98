"""properties.py - settings -> run directory: verdicts on the properties of .vnnlib files, and counterexamples.

verdicts.json holds them; counterexample-N.txt the inputs and outputs of the N-th, in the form of VNN-COMP, and
counterexample-N.safetensors what it moved: x, and weights.NAME.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import nn

from nonsingular.certificates.certify import decide
from nonsingular.data.datasets import hash_tensors
from nonsingular.data.property import Property
from nonsingular.data.vnnlib import load_property
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import threads
from nonsingular.network.margins import worst_margin
from nonsingular.results.files import Log, write_atomic, write_json
from nonsingular.results.surface import EVENTS
from nonsingular.runs.directory import check_free, claimed, environment
from nonsingular.runs.engine import Workplace
from nonsingular.runs.jobs import Report, load_model
from nonsingular.settings import PropertySettings
from nonsingular.threat.ball import JointBall

VERDICTS = "verdicts.json"
FORMAT = 1
MANY = 2**40
"""Parts of a region: the time is what ends a search."""


def properties_run(
    settings: PropertySettings, out: Path, workplace: Workplace, report: Report = lambda what, n: None, command: str = ""
) -> dict[str, Any]:
    """Verdicts on all properties, also written to `out`.  What is decided there already is not decided again.

    Raises InvalidInput for a file or model that cannot be used: for the first one before anything is decided.
    """
    files = _files(settings.vnnlib)
    with threads(1):
        model, _ = load_model(settings.model, settings.weights)
        network = hash_tensors(model.state_dict())
        asked = [(n, file, _sha256(file)) for n, file in enumerate(files)]
        _question(settings, model, files[0])
    check_free(out, settings)
    surroundings = environment()
    with workplace.open() as pool, claimed(out, settings):
        log = Log(out / EVENTS)
        done = {tuple(e["key"]): e["verdict"] for e in log}
        todo = [(n, file, digest) for n, file, digest in asked if (n, digest, network) not in done]
        report("properties", len(asked) - len(todo))
        text = settings.model_dump_json()
        calls = {} if pool is None else {pool.submit(verdict_on, text, str(file)): (n, file, digest) for n, file, digest in todo}
        for n, file, digest, found in _answers(text, todo, calls):
            names = _written(out, n, found)
            kept = {"property": str(file), "sha256": digest} | found | names
            log.append({"key": [n, digest, network], "verdict": kept})
            done[n, digest, network] = kept
            report("properties", 1)
        results = {
            "format": FORMAT, "command": command, "model": settings.model, "model_sha256": network,
            "verdicts": [done[n, digest, network] for n, _, digest in asked], "config": json.loads(text),
            "environment": surroundings,
        }  # fmt: skip
        write_json(out / VERDICTS, results)
    return results


Asked = tuple[int, Path, str]
"""Number of a property, its file, and the hash of that."""


def _answers(
    settings: str, todo: Sequence[Asked], calls: dict[Future[dict[str, Any]], Asked]
) -> Iterator[tuple[int, Path, str, dict[str, Any]]]:
    """Each property with what is found, as it is found."""
    if calls:
        for future in as_completed(calls):
            yield *calls[future], future.result()
    else:
        for n, file, digest in todo:
            yield n, file, digest, verdict_on(settings, str(file))


def _files(given: Sequence[Path]) -> list[Path]:
    """The files themselves, and those in folders by name."""
    found: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.iterdir() if p.name.endswith((".vnnlib", ".vnnlib.gz"))) if path.is_dir() else [path]
        if not inside:
            raise InvalidInput(f"{path} holds no .vnnlib file; give a file, or a folder of them")
        found += inside
    return found


def _sha256(file: Path) -> str:
    if not file.is_file():
        raise InvalidInput(f"property '{file}' does not exist; give a .vnnlib file, or a folder of them")
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- one property ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _model(spec: str, weights: Path | None) -> nn.Module:
    """Each process reads a model once."""
    return load_model(spec, weights)[0]


def _question(settings: PropertySettings, model: nn.Module, file: Path) -> tuple[Property, nn.Module, JointBall]:
    """The property for inputs of the model's shape, its network and its ball."""
    asked, radii = load_property(file), settings.eps_w
    shape = settings.shape or cast("tuple[int, ...] | None", getattr(model, "input_shape", None))
    asked = asked if shape is None else asked.shaped(shape)
    if not isinstance(radii, dict) and len(radii) != 1:
        raise InvalidInput(f"eps_w is {list(radii)}; give one radius with a property, or tensor=radius,tensor=radius")
    ball = asked.ball(radii if isinstance(radii, dict) else radii[0], moves=settings.moves, relative=settings.relative)
    network = asked.on(model)
    ball.radii(dict(network.named_parameters()))  # an unknown name in eps_w
    return asked, network, ball


def verdict_on(settings: str, file: str) -> dict[str, Any]:
    """What a worker finds of one property: a record, and "point" with the tensors of a counterexample.

    status: verified, falsified or timeout.  lower: a lower bound of the smallest margin; margin: one that is attained.
    """
    asked = PropertySettings.model_validate_json(settings)
    p, network, ball = _question(asked, _model(asked.model, asked.weights), Path(file))
    wall, cpu = time.perf_counter(), time.process_time()
    found = decide(network, p.x, p.y, ball, attack=asked.attack, parts=MANY, seconds=asked.seconds or math.inf)
    lower = worst_margin(found.lower, p.y).item()
    record: dict[str, Any] = {
        "label": p.label, "status": found.status[0], "lower": lower if math.isfinite(lower) else None,
        "margin": found.upper.item(), "parts": int(found.parts),
        "seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3),
    }  # fmt: skip
    if found.status[0] != "falsified":
        return record
    for point in (p.in_float32(found.perturbation), found.perturbation):
        outputs = p.outputs(network, point)
        if not p.holds_at(outputs):
            tensors = {"x": point.x[0], **{f"weights.{p.named(n)}": w[0] for n, w in point.weights.items()}}
            return record | {"point": {n: t.numpy() for n, t in tensors.items()}, "outputs": outputs.tolist()}
    return record | {"status": "timeout"}  # a margin of 0 up to rounding


def _written(out: Path, n: int, found: dict[str, Any]) -> dict[str, Any]:
    """Writes the counterexample of a property, which it takes out of what was found, and returns the name of its text."""
    point, outputs = found.pop("point", None), found.pop("outputs", None)
    if point is None:
        return {}
    values = [("X", point["x"].reshape(-1).tolist()), ("Y", outputs)]
    lines = [f"({kind}_{i} {value!r})" for kind, numbers in values for i, value in enumerate(numbers)]
    write_atomic(out / f"counterexample-{n}.txt", "(" + "\n ".join(lines) + ")\n")
    tensors = {name: torch.from_numpy(value).contiguous() for name, value in point.items()}
    write_atomic(out / f"counterexample-{n}.safetensors", save(tensors))
    return {"counterexample": f"counterexample-{n}.txt"}
