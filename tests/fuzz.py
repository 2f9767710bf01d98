"""Damaged and crafted files for everything that reads: no code of them runs, and nothing but InvalidInput may come out.

A *case* is one file: a whole one with some of its bytes changed, cut, doubled or replaced, or nothing but noise; or a random
structure of settings; or a file of its format with other names, sizes, texts and structure (crafted.py).
It is drawn from a seed and can be repeated from it.  Warnings count as errors, as in the tests.
The work is done in a process of its own with 4 GB of memory, so that a crash of a library is found and named, too.

    python tests/fuzz.py --minutes 10 --out fuzz.jsonl            # one line per block of cases; exit 1 if something else came out
    python tests/fuzz.py --target npz --first 1234 --cases 1      # one case again, with its traceback
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import string
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from nonsingular.data.datasets import Split, as_tensors, load
from nonsingular.data.vnnlib import load_property
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.stored import Against, Found, read_found, write_found
from nonsingular.models.checkpoints import fit_checkpoint
from nonsingular.models.loading import load_run
from nonsingular.models.onnx_batches import load_onnx
from nonsingular.models.torch_export import load_exported
from nonsingular.models.weights import kind_of, read_weights
from nonsingular.report.cells import cells_csv
from nonsingular.report.html import page
from nonsingular.report.md import markdown
from nonsingular.results.files import Log
from nonsingular.results.gates import Gate, junit
from nonsingular.results.gates import check as check_gates
from nonsingular.results.surface import CONFIG, RESULTS, WEIGHTS
from nonsingular.runs.directory import read_results
from nonsingular.settings import (
    CertifySettings,
    EvaluateSettings,
    PropertySettings,
    ReproduceSettings,
    TrainSettings,
    checked,
    to_yaml,
)
from nonsingular.threat.ball import JointBall
from nonsingular.untrusted import read_config

sys.path.insert(0, str(Path(__file__).parent))
import crafted

BLOCK = 500
SLOW = 10.0  # seconds that no case may take
MEMORY = 4 << 30

# --- how things are damaged --------------------------------------------------------------------------------------------------

TELLING = [
    b"\x00",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"NaN",
    b"-1",
    b"1e999",
    b"\n",
    b"," * 9,
    b"{" * 2000,
    b"'",
]


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """`whole` after one to six changes; sometimes nothing but noise, or nothing."""
    if rng.random() < 0.03:
        return rng.randbytes(rng.choice([0, 1, 4, 16, 300]))
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        if not data:
            break
        at, n = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 8, 64])
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + n] = rng.randbytes(n)
            case 2:
                del data[at : at + n]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + n] * rng.choice([1, 2, 50])
            case 5:
                data[at : at + n] = rng.choice(TELLING)
            case _:
                data[at:at] = rng.choice(TELLING)
    return bytes(data)


def structure(rng: random.Random, depth: int = 3) -> Any:
    """Anything that YAML or JSON can hold."""
    words = [
        "",
        "digits",
        "none",
        "0:1:3",
        "0,1",
        "a=1",
        "a=b=c",
        "1:2",
        "0:1:99999999999",
        "-1",
        "nan",
        "\0",
        "ε" * 3,
        "paper+apgd",
        "é\nb",
    ]
    match rng.randrange(9 if depth else 7):
        case 0:
            return rng.choice(words)
        case 1:
            return rng.choice([0, 1, -1, 7, 2**31, -(2**63), 10**40])
        case 2:
            return rng.choice([0.0, 0.1, -0.5, 1e308, float("nan"), float("inf"), float("-inf")])
        case 3:
            return rng.choice([None, True, False])
        case 4:
            return "".join(rng.choices(string.printable, k=rng.randrange(12)))
        case 5 | 6:
            return sorted(rng.random() for _ in range(rng.randrange(4)))
        case 7:
            return [structure(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            return {
                rng.choice([*words, "method", "eps_x", 3, None, True]): structure(rng, depth - 1) for _ in range(rng.randrange(4))
            }


# --- whole files -------------------------------------------------------------------------------------------------------------


def _npz(rng: random.Random) -> bytes:
    buffer, n = io.BytesIO(), rng.choice([1, 6])
    x = (
        np.linspace(0, 1, n * 4, dtype=rng.choice(["f2", "f4", ">f8"])).reshape(n, 4)
        if rng.random() < 0.7
        else np.zeros((n, 2, 2), "u1")
    )
    more: dict[str, Any] = rng.choice(
        [{}, {"classes": np.array(["a", "b"])}, {"domain": np.array([0.0, 2.0])}, {"x_train": x, "y_train": np.arange(n)}]
    )
    np.savez(buffer, x_test=x, y_test=np.arange(n) % 2, **more)
    return buffer.getvalue()


def _zip_of_damaged(rng: random.Random) -> bytes:
    """Damage within the members of an archive whose checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_npz(rng))) as whole, zipfile.ZipFile(buffer, "w") as out:
        for name in whole.namelist():
            content = whole.read(name)
            out.writestr(name if rng.random() < 0.95 else name[:-4], damaged(rng, content) if rng.random() < 0.3 else content)
    return buffer.getvalue()


def _idx(shape: tuple[int, ...]) -> bytes:
    array = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape) % 5
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in shape) + array.tobytes()


def _picture(rng: random.Random, form: str) -> bytes:
    buffer = io.BytesIO()
    mode = rng.choice(["L", "RGB"]) if form in ("JPEG", "PPM") else rng.choice(["L", "RGB", "RGBA"])
    Image.effect_noise((6, 5), 50).convert(mode).save(buffer, form)
    return buffer.getvalue()


def _column(rng: random.Random, n: int, kinds: str = "iftvrmpbo0") -> Any:
    """A column of one of these types, seldom with holes."""
    kind = rng.choice(kinds)
    length = rng.randrange(4)
    values: dict[str, Callable[[], Any]] = {
        "i": lambda: rng.randrange(3), "f": rng.random, "t": lambda: rng.choice(["a", "b"]), "v": lambda: [rng.random()] * length,
        "r": lambda: [rng.random()] * rng.randrange(3), "m": lambda: [[rng.randrange(9)] * 2] * 2, "b": lambda: rng.randbytes(3),
        "p": lambda: {"bytes": _picture(rng, "PNG"), "path": "a"}, "o": lambda: rng.random() < 0.5, "0": lambda: None,
    }  # fmt: skip
    holes = rng.random() < 0.1
    column = pa.array([None if holes and rng.random() < 0.3 else values[kind]() for _ in range(n)])
    if kind == "t" and not holes and rng.random() < 0.5:
        return column.dictionary_encode()
    if kind == "i":
        return column.cast(rng.choice([pa.int8(), pa.uint8(), pa.int64(), pa.float16(), pa.string()]))
    return column


def _table(rng: random.Random) -> pa.Table:
    n = rng.choice([0, 1, 5, 5])
    if rng.random() < 0.6:
        columns = {"label": _column(rng, n, "iiit"), rng.choice(["x", "image"]): _column(rng, n, "ffvvvmp")}
    else:
        names = rng.sample(["image", "img", "label", "labels", "x", "y", "target", "", "label "], rng.randrange(1, 4))
        columns = {name: _column(rng, n) for name in names}
    table = pa.table(columns)
    if rng.random() < 0.5:
        feature = rng.choice(
            [{"_type": "ClassLabel", "names": ["a", "b", "c"]}, {"_type": "Image"}, {"_type": ["x"]}, structure(rng)]
        )
        about = {"info": {"features": {rng.choice(list(columns)): feature}}} if rng.random() < 0.9 else structure(rng)
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    return table


def _parquet(rng: random.Random, kind: str) -> bytes:
    buffer, table = io.BytesIO(), _table(rng)
    if kind == "parquet":
        pq.write_table(table, buffer, compression=rng.choice(["none", "snappy", "gzip"]))
    else:
        with (pa.ipc.new_file if rng.random() < 0.5 else pa.ipc.new_stream)(buffer, table.schema) as out:
            out.write_table(table)
    return buffer.getvalue()


def _csv(rng: random.Random) -> bytes:
    cells = ["0", "1", "2.5", "-3", "1e400", "nan", "", "a", '"', "inf", " 7 ", "1_0", "٣"]
    good = "a,b,label\n1,2,0\n3,4,1\n5,6,0\n"
    rows = [",".join(rng.choice(cells) for _ in range(3)) for _ in range(rng.randrange(5))]
    return (good if rng.random() < 0.4 else "\n".join(rows)).encode()


def _vnnlib(rng: random.Random) -> bytes:
    """A property: a whole box and any formula, or a telling form within it."""

    def number(depth: int) -> str:
        if rng.random() < 0.02:
            return rng.choice(["X_0", "X_9", "1e308", "1e400", "nan", "0x1", "1e-400", "1_0", "٣", "Y_-1"])
        if not depth or rng.random() < 0.6:
            return rng.choice(["Y_0", "Y_1", "Y_2", "1.0", "-0.5", "0.25"])
        first = rng.choice("+-*")
        rest = [number(0), rng.choice(["2", "-0.5"])] if first == "*" else [number(depth - 1) for _ in range(rng.randrange(1, 4))]
        return f"({first} {' '.join(rest)})"

    def formula(depth: int) -> str:
        odd = rng.random() < 0.02
        if not depth or rng.random() < 0.4:
            return f"({rng.choice('<=') if odd else rng.choice(['<=', '>='])} {number(2)} {number(2)})"
        inside = " ".join(formula(depth - 1) for _ in range(rng.randrange(0 if odd else 1, 5)))
        return f"({'not' if odd else rng.choice(['and', 'or'])} {inside})"

    telling = [
        "(",
        ")",
        "(and " * 60,
        "(assert (or))",
        "(assert (and))",
        "()",
        "(declare-const X_0 Real)",
        "; ",
        "(assert (or (<= X_0 1) (<= Y_0 1)))",
    ]
    lines = [f"(declare-const {v} Real)" for v in ("X_0", "X_1", "Y_0", "Y_1", "Y_2")]
    lines += ["(assert (>= X_0 0))", "(assert (<= X_0 0.3))", "(assert (and (>= X_1 -1e-3) (<= X_1 7)))"]
    lines += [f"(assert {formula(3)})" for _ in range(rng.choice([1, 1, 2, 5]))]
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(telling))
    return "\n".join(lines).encode()


_SETTINGS = EvaluateSettings(model="m.py:f", data="digits", eps_x="0:0.2:3", eps_w="a=0.1,b=0.2", domain="-1,1")  # type: ignore[arg-type]


def _log(rng: random.Random) -> bytes:
    lines: list[bytes] = []
    for _ in range(rng.randrange(4)):
        entry = {"key": structure(rng), "cell": structure(rng, 1)}
        body = json.dumps(json.loads(json.dumps(entry)), sort_keys=True)  # keys as text
        lines.append(json.dumps({"crc": zlib.crc32(body.encode()), "entry": json.loads(body)}).encode())
    return b"\n".join(lines) + b"\n"


# --- what reads them ---------------------------------------------------------------------------------------------------------


def _file(name: str, whole: Callable[[random.Random], bytes], always: bool = True) -> Callable[[random.Random, Path], None]:
    """Loads a file of this name.  always: it is damaged every time; else every second time."""

    def case(rng: random.Random, folder: Path) -> None:
        content = whole(rng)
        (folder / name).write_bytes(damaged(rng, content) if always or rng.random() < 0.5 else content)
        load(str(folder / name), domain=rng.choice(["own", None, (-1.0, 2.0)]))  # type: ignore[arg-type]

    return case


def _idx_pair(rng: random.Random, folder: Path) -> None:
    n = rng.choice([1, 6])
    for name, content in (("images-idx3", _idx((n, 3, 4))), ("labels-idx1", _idx((n,)))):
        changed = damaged(rng, content) if rng.random() < 0.6 else content
        packed = rng.random() < 0.3
        zipped = gzip.compress(changed) if packed else changed
        (folder / f"test-{name}-ubyte{'.gz' if packed else ''}").write_bytes(
            damaged(rng, zipped) if rng.random() < 0.3 else zipped
        )
    load(str(folder))


def _images(rng: random.Random, folder: Path) -> None:
    suffix, form = rng.choice(
        [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF"), ("ppm", "PPM")]
    )
    for name in ("a", "b"):
        (folder / name).mkdir()
        content = _picture(random.Random(0), form)
        (folder / name / f"0.{suffix}").write_bytes(damaged(rng, content) if rng.random() < 0.7 else content)
    load(str(folder))


def _property(rng: random.Random, folder: Path) -> None:
    whole = _vnnlib(rng)
    whole = damaged(rng, whole) if rng.random() < 0.3 else whole
    packed = rng.random() < 0.2
    whole = gzip.compress(whole) if packed else whole
    path = folder / f"p.vnnlib{'.gz' if packed else ''}"
    path.write_bytes(damaged(rng, whole) if rng.random() < 0.1 else whole)
    found = load_property(path)
    box = found.ball().input_box(found.x)
    assert torch.equal(box.lo, found.lo) and torch.equal(box.hi, found.hi), "the ball is not the box"
    if found.unsafe[0].A.shape[1] == 3:
        found.on(torch.nn.Linear(2, 3))(found.x)


def _rows(rng: random.Random, folder: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([3, 1, 2]))
    name, content = rng.choice([("i.npy", buffer.getvalue()), ("i.txt", b"3\n1\n2\n"), ("i.json", b"[3, 1, 2]")])
    (folder / name).write_bytes(
        damaged(rng, content) if rng.random() < 0.8 else json.dumps(structure(rng), skipkeys=True).encode()
    )
    Split(torch.zeros(5, 1), torch.zeros(5)).pick(folder / name)


SCHEMAS = (EvaluateSettings, CertifySettings, PropertySettings, TrainSettings, ReproduceSettings)


def _config(rng: random.Random, folder: Path) -> None:
    path = folder / "c.yaml"
    path.write_bytes(damaged(rng, to_yaml(_SETTINGS).encode()))
    to_yaml(checked(rng.choice([*SCHEMAS, *[EvaluateSettings] * 6]), read_config(path)))


def _settings(rng: random.Random, folder: Path) -> None:
    schema = rng.choice(SCHEMAS)
    values: dict[str, Any] = {"model": "m", "network": {}, "recipes": {}, "eps_x": 0, "eps_w": 0} if rng.random() < 0.7 else {}
    values = {k: v for k, v in values.items() if k in schema.model_fields}
    for _ in range(rng.randrange(1, 4)):
        values[rng.choice([*schema.model_fields, "nonsense"])] = structure(rng)
    settings = checked(schema, values)
    (folder / "c.yaml").write_text(to_yaml(settings), encoding="utf-8")
    assert checked(schema, read_config(folder / "c.yaml")) == settings, "the settings written are not the settings read"


def _records(rng: random.Random, folder: Path) -> None:
    (folder / "events.jsonl").write_bytes(damaged(rng, _log(rng)))
    list(Log(folder / "events.jsonl"))


def _values(rng: random.Random, folder: Path) -> None:
    tensor = [torch.zeros(2), np.zeros((2, 3)), np.array(["a"]), torch.tensor(3), np.array([None])]
    parts = [rng.choice(tensor) if rng.random() < 0.5 else structure(rng) for _ in range(rng.randrange(4))]
    as_tensors(rng.choice([parts, tuple(parts), [tuple(parts)] * 2, structure(rng)]))


# --- models, weights and runs: crafted ---------------------------------------------------------------------------------------


def _unwarned(case: Callable[[random.Random, Path], None]) -> Callable[[random.Random, Path], None]:
    """What torch and onnx warn of on their way is no fault of ours."""

    def run(rng: random.Random, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case(rng, folder)

    return run


def _pt2(rng: random.Random, folder: Path) -> None:
    whole = crafted.pt2(rng)
    (folder / "m.pt2").write_bytes(damaged(rng, whole) if rng.random() < 0.1 else whole)
    model = load_exported(folder / "m.pt2")
    with contextlib.suppress(RuntimeError):
        model(torch.zeros(2, 4))


def _onnx(rng: random.Random, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(crafted.onnx(rng) if rng.random() < 0.9 else damaged(rng, crafted.onnx(rng)))
    model = load_onnx(folder / "m.onnx")
    with contextlib.suppress(RuntimeError):
        model(torch.zeros(2, 4))


def _torch(rng: random.Random, folder: Path) -> None:
    whole = crafted.state_dict(rng)
    (folder / "w.pt").write_bytes(damaged(rng, whole) if rng.random() < 0.2 else whole)
    if kind_of(folder / "w.pt") == "torch":
        fit_checkpoint([crafted.network()], read_weights(folder / "w.pt"), folder / "w.pt")


def _safetensors(rng: random.Random, folder: Path) -> None:
    whole = crafted.safetensors(rng)
    (folder / "w.safetensors").write_bytes(damaged(rng, whole) if rng.random() < 0.2 else whole)
    fit_checkpoint([crafted.network()], read_weights(folder / "w.safetensors"), folder / "w.safetensors")


def _run(rng: random.Random, folder: Path) -> None:
    """The folder of a trained model: its settings, and the form that its weights are for."""
    settings = json.loads(TrainSettings(network={"hidden": (3,), "bias": True}).model_dump_json())  # type: ignore[arg-type]
    settings = crafted.mutated(rng, settings) if rng.random() < 0.5 else settings
    (folder / CONFIG).write_text(yaml.safe_dump(settings), encoding="utf-8")
    form = {"input_shape": [4], "classes": 2}
    about = {"built_for": json.dumps(crafted.mutated(rng, form) if rng.random() < 0.6 else form)}
    tensors = {"1.weight": torch.zeros(3, 4), "1.bias": torch.zeros(3), "3.weight": torch.zeros(2, 3), "3.bias": torch.zeros(2)}
    whole = crafted.safetensors(rng, about, tensors) if rng.random() < 0.3 else save(tensors, about)
    (folder / WEIGHTS).write_bytes(whole)
    load_run(folder)


def _results(rng: random.Random, folder: Path) -> None:
    results = crafted.mutated(rng, crafted.results())
    (folder / RESULTS).write_text(json.dumps(results), encoding="utf-8")
    found = read_results(folder)
    with _malformed():
        text = page([found]) + markdown(found) + cells_csv([found]) + junit("a", check_gates(found, [Gate(0.1)]))
        crafted.check_text(text)


_AGAINST = Against(nn.Sequential(nn.Linear(4, 3, bias=False)), torch.zeros(3, 4), JointBall(1.0, 1.0))


def _perturbations(rng: random.Random, folder: Path) -> None:
    heads = [{"radii": [0.1, 0.01], "scope": "sample"}]
    tensors = {"0.rows": torch.arange(2), "0.x": torch.zeros(2, 4), "0.weights.0.weight": torch.zeros(2, 3, 4)}
    about = {"groups": json.dumps(crafted.mutated(rng, heads) if rng.random() < 0.5 else heads)}
    whole = crafted.safetensors(rng, about, tensors) if rng.random() < 0.6 else save(tensors, about)
    (folder / "p.safetensors").write_bytes(damaged(rng, whole) if rng.random() < 0.2 else whole)
    with _malformed():
        read_found(folder / "p.safetensors", _AGAINST)


def _packed(rng: random.Random, folder: Path) -> None:
    """Perturbations as they are written, with their form or their packed bytes changed."""
    path, rows = folder / "p.safetensors", torch.arange(2)
    point = {"x": torch.full((2, 4), 0.1), "weights.0.weight": torch.zeros(3, 4), "shifts.0": torch.zeros(2, 99)}
    write_found(path, [Found((0.1, 0.01), "batch", rows, point)], _AGAINST)
    with safe_open(path, "pt") as f:
        about = json.loads(f.metadata()["groups"])
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    if rng.random() < 0.6:
        about = crafted.mutated(rng, about)
    if rng.random() < 0.6:
        name = rng.choice(sorted(tensors.keys() - {"0.rows"}))
        inside = zlib.decompress(tensors[name].numpy().tobytes()) if tensors[name].dtype == torch.uint8 else b"\0" * 9
        inside = damaged(rng, inside) if rng.random() < 0.8 else inside * rng.choice([2, 10**4])
        tensors[name] = torch.frombuffer(bytearray(zlib.compress(inside)), dtype=torch.uint8)
    path.write_bytes(save(tensors, {"groups": json.dumps(about)}))
    with _malformed():
        for found in read_found(path, _AGAINST):
            assert sum(t.numel() for t in found.tensors.values()) < 2**22


@contextlib.contextmanager
def _malformed() -> Generator[None]:
    """Of results and stored perturbations only what they run and what they write is looked at here."""
    try:
        yield
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError):
        return


def _texts(rng: random.Random, folder: Path) -> None:
    """Settings with texts that would do something if they were evaluated, looked up or formatted."""
    values = crafted.mutated(rng, json.loads(_SETTINGS.model_dump_json()))
    (folder / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    to_yaml(checked(EvaluateSettings, read_config(folder / "c.yaml")))


TARGETS: dict[str, Callable[[random.Random, Path], None]] = {
    "pt2": _unwarned(_pt2),
    "onnx": _unwarned(_onnx),
    "torch": _unwarned(_torch),
    "safetensors": _safetensors,
    "run": _unwarned(_run),
    "results": _unwarned(_results),
    "perturbations": _perturbations,
    "packed": _packed,
    "texts": _texts,
    "npz": _file("a.npz", _npz),
    "npz-zip": _file("a.npz", lambda rng: crafted.zip_mutated(rng, _npz(rng), _npz(rng)), always=False),
    "npz-members": _file("a.npz", _zip_of_damaged, always=False),
    "idx": _idx_pair,
    "images": _images,
    "parquet": _file("a.parquet", lambda rng: _parquet(rng, "parquet")),
    "parquet-columns": _file("a.parquet", lambda rng: _parquet(rng, "parquet"), always=False),
    "arrow": _file("a.arrow", lambda rng: _parquet(rng, "arrow")),
    "csv": _file("a.csv", _csv, always=False),
    "indices": _rows,
    "vnnlib": _property,
    "config": _config,
    "settings": _settings,
    "records": _records,
    "values": _values,
}


def check(target: str, seed: int) -> str:
    """ "read" or "refused".  Everything else that is raised goes through."""
    rng = random.Random(f"{target} {seed}")
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        started, here = time.monotonic(), Path.cwd()
        os.chdir(name)
        try:
            with crafted.watched():
                TARGETS[target](rng, Path(name))
        except InvalidInput as e:
            said = str(e)
        else:
            return "read"
        finally:
            os.chdir(here)
            if time.monotonic() - started > SLOW:
                raise TimeoutError(f"took longer than {SLOW} s")
    assert said.strip(), "a message that says nothing"
    return "refused"


# --- the long run ------------------------------------------------------------------------------------------------------------


def run_block(target: str, first: int, cases: int, out: Any) -> None:
    """In a process of its own: says before each case which it is, then what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    for seed in range(first, first + cases):
        out.send((seed, None, None))
        try:
            out.send((seed, check(target, seed), None))
        except BaseException as e:
            out.send((seed, f"{type(e).__name__}", "".join(traceback.format_exception(e))[-3000:]))
    out.send(None)


def block(target: str, first: int, cases: int = BLOCK) -> dict[str, Any]:
    """One line of the record."""
    here, there = multiprocessing.Pipe(duplex=False)
    started, seed = time.monotonic(), first
    child = multiprocessing.get_context("fork").Process(target=run_block, args=(target, first, cases, there))
    child.start()
    there.close()
    found: dict[str, Any] = {"target": target, "first": first, "cases": 0, "read": 0, "refused": 0, "faults": []}
    try:
        while (message := here.recv()) is not None:
            seed, result, trace = message
            if result in ("read", "refused"):
                found[result] += 1
                found["cases"] += 1
            elif result is not None:
                found["faults"].append({"seed": seed, "raised": result, "trace": trace})
                found["cases"] += 1
    except EOFError:
        child.join()
        found["faults"].append({"seed": seed, "raised": f"the process ended with {child.exitcode}", "trace": ""})
        found["cases"] += 1
    child.join()
    return {**found, "seconds": round(time.monotonic() - started, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, help="this many of one target, in this process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.cases:
        for seed in range(options.first, options.first + options.cases):
            print(options.target, seed, check(options.target, seed))
        return
    lines: list[dict[str, Any]] = []
    names = [options.target] if options.target else list(TARGETS)
    if "pt2" in names:
        crafted.exported(0), crafted.exported(1)  # once, not in every block
    started, first = time.monotonic(), options.first
    while time.monotonic() - started < 60 * options.minutes:
        for target in names:
            lines.append(block(target, first))
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
            for fault in lines[-1]["faults"][:3]:
                print(target, fault["seed"], fault["raised"], fault["trace"].strip().splitlines()[-1:], flush=True)
        first += BLOCK
    for target in names:
        of = [line for line in lines if line["target"] == target]
        print(
            target,
            {k: sum(line[k] for line in of) for k in ("cases", "read", "refused")},
            sum(len(line["faults"]) for line in of),
            "faults",
        )
    raise SystemExit(1 if any(line["faults"] for line in lines) else 0)


if __name__ == "__main__":
    main()
