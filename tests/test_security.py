"""No file runs code, none takes what it wants of memory, and no name commands a terminal, a page or a spreadsheet.

What is reachable from which file is listed in docs/security.md.  The long run: fuzz.py.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import pickle
import struct
import tracemalloc
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import crafted
from nonsingular.cli import screen
from nonsingular.cli.main import main
from nonsingular.data.datasets import Split, load
from nonsingular.errors import InvalidInput
from nonsingular.models.loading import load_run
from nonsingular.models.torch_archive import checked_archive, is_expression, is_operation
from nonsingular.models.torch_export import load_exported
from nonsingular.models.weights import kind_of, read_weights
from nonsingular.plain import cell, legible, legible_all
from nonsingular.report.cells import cells_csv
from nonsingular.report.figure import contours, render
from nonsingular.report.html import page
from nonsingular.report.md import markdown
from nonsingular.report.summary import read
from nonsingular.report.table import model_table
from nonsingular.results.gates import Checked, Gate, junit
from nonsingular.results.surface import CONFIG, RESULTS, WEIGHTS, Cell, pack
from nonsingular.settings import EvaluateSettings, TrainSettings, checked, to_yaml
from nonsingular.untrusted import is_identifier, is_path, read_config

fuzz = pytest.importorskip("fuzz")
CALL = crafted.CALL


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(read: Callable[[Path], Any], name: str, content: bytes, message: str) -> None:
    """Reading the file runs nothing, is refused with this message, and takes less than 64 MB for Python's own objects."""
    Path(name).write_bytes(content)
    tracemalloc.start()
    try:
        with crafted.watched(), pytest.raises(InvalidInput, match=message):
            read(Path(name))
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


# --- a model file runs no code ------------------------------------------------------------------------------------------------


def swapped(old: str, new: str) -> bytes:
    """A .pt2 file with another text in place of one, wherever it stands."""
    found = crafted.with_model(crafted.exported(), crafted.everywhere(old, new))
    assert found != crafted.with_model(crafted.exported(), lambda name, value: value)
    return found


def in_program(change: Callable[[Any], Any]) -> bytes:
    """A .pt2 file with its program changed."""

    def edit(name: str, found: Any) -> Any:
        if name.endswith("models/model.json"):
            change(found)
        return found

    return crafted.with_model(crafted.exported(), edit)


def size_of_code() -> bytes:
    text = next(t for t in crafted._texts(0) if t.startswith("Symbol("))
    return swapped(text, CALL)


def spec_of(kind: str, context: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        spec = json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": []}])
        found["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    return change


def node(found: Any) -> Any:
    return found["graph_module"]["graph"]["nodes"][0]


def sizes(found: Any) -> Any:
    return found["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]


FACTORY = {"default_factory_module": crafted.CANARY, "default_factory_name": "f", "dict_context": []}
ENUM = {"__enum__": True, "fqn": f"{crafted.CANARY}:A", "name": "b"}
PT2: dict[str, tuple[Callable[[], bytes], str]] = {
    "a parameter's name": (lambda: swapped("0.weight", crafted.NAMES[0]), "holds the name"),
    "an input's name": (lambda: swapped("input", crafted.NAMES[1]), "holds the name"),
    "a node's name": (lambda: swapped("linear", "a = " + CALL), "holds the name"),
    "two archives": (lambda: size_of_code() + crafted.exported(), "more than its zip archive"),
    "two archives, turned": (lambda: crafted.exported() + size_of_code(), "more than its zip archive"),
    "a size": (size_of_code, "not an expression of sizes"),
    "an attribute of nn.Module": (lambda: swapped("0.weight", "forward"), "holds the name"),
    "a name of Python's": (lambda: swapped("0.weight", "0.__class__"), "holds the name"),
    "a function as an argument": (
        lambda: in_program(lambda f: node(f)["inputs"][0].update(arg={"as_operator": "torch.os.system"})), "as_operator"),
    "a file as an operation": (
        lambda: in_program(lambda f: node(f).update(target="torch.ops.aten.from_file.default")), "not a tensor operation"),
    "a function of Python": (
        lambda: in_program(lambda f: node(f).update(target="_operator.methodcaller")), "not a tensor operation"),
    "a module that a spec imports": (lambda: in_program(spec_of("collections.defaultdict", FACTORY)), "another form than tuples"),
    "a class that a spec names": (lambda: in_program(spec_of("builtins.dict", ENUM)), "another form than tuples"),
    "a symbol that counts": (
        lambda: in_program(lambda f: f.update(range_constraints={"u999999999": {"min_val": 0, "max_val": 1}})), "holds the name"),
    "an object": (lambda: with_file("m/data/constants/opaque_obj_0", pickle.dumps(crafted.Trap())), "code or a"),
    "an example of gigabytes": (lambda: in_program(lambda f: sizes(f)[1].update(as_int=10**9)), "at most 512 MiB are tried"),
    "packed": (lambda: packed(crafted.files_of(crafted.exported())), "compressed"),
    "a tensor of more than it holds": (lambda: crafted.with_model(crafted.exported(), huge), "declares the shape"),
}  # fmt: skip


def with_file(name: str, data: bytes) -> bytes:
    return crafted.zipped(crafted.files_of(crafted.exported()) | {name: data})


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def huge(name: str, found: Any) -> Any:
    for meta in found["config"].values() if name.endswith("weights_config.json") else ():
        meta["tensor_meta"]["sizes"] = [{"as_int": 2**40}]
    return found


@pytest.mark.parametrize("name", PT2)
def test_a_crafted_model_is_refused(name: str) -> None:
    make, message = PT2[name]
    refused(load_exported, "m.pt2", make(), message)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_would_take_gigabytes_is_not_run() -> None:
    class Large(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(1, 2**30).sum(1, keepdim=True) + x

    stream = io.BytesIO()
    torch.export.save(torch.export.export(Large(), (torch.zeros(1, 4),)), stream)
    refused(load_exported, "m.pt2", stream.getvalue(), "makes a tensor of shape .* and at most 4 GiB are tried")


@pytest.mark.filterwarnings("ignore")
def test_the_watch_sees_a_name_that_runs(tmp_path: Path) -> None:
    """What is refused above does run where torch reads it: so that the tests above test something."""
    (tmp_path / "m.pt2").write_bytes(swapped("0.weight", crafted.NAMES[0]))
    with pytest.raises(AssertionError, match="code of a file was run"), crafted.watched(), suppress(AttributeError):
        torch.export.load(tmp_path / "m.pt2").module()


def test_torch_reads_a_fresh_archive_without_what_is_not_needed(tmp_path: Path) -> None:
    files = crafted.files_of(crafted.exported())
    root = next(iter(files)).partition("/")[0]
    more = {f"{root}/extra/notes.txt": b"x" * 9, f"{root}/data/sample_inputs/model.pt": pickle.dumps(crafted.Trap())}
    (tmp_path / "m.pt2").write_bytes(crafted.zipped(files | more))
    kept = crafted.files_of(checked_archive(tmp_path / "m.pt2").read())
    assert not any("extra" in name for name in kept)
    assert kept[f"{root}/data/sample_inputs/model.pt"] == b""
    program = json.loads(kept[f"{root}/models/model.json"])
    assert program["guards_code"] == [] and all(n["metadata"] == {} for n in program["graph_module"]["graph"]["nodes"])
    with crafted.watched():
        assert load_exported(tmp_path / "m.pt2")(torch.zeros(5, 4)).shape == (5, 2)


@pytest.mark.parametrize("name", [n for n in crafted.NAMES if n not in ("0.weight", "weight", "self", "torch", "builtins.exec")])
def test_names_of_code_are_no_names(name: str) -> None:
    assert not is_identifier(name) or name in ("forward", "_parameters")
    assert not is_path(name) or "canary_of_the_tests" in name or name in ("forward", "_parameters")
    assert not is_operation(name) and not is_expression(f"Symbol({name!r})")


@pytest.mark.parametrize(
    "text",
    ["9**9**9**9", "Pow(9, 9**9)", "LShift(1, 10**9)", "s0.real", "f(s0)", "[s0]", "s0 if s0 else s1", "(s0 := 1)", "1" * 5000],
)
def test_sizes_that_take_forever_are_none(text: str) -> None:
    assert not is_expression(text)


def test_names_of_onnx_are_made_legal(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from nonsingular.models.onnx_batches import load_onnx

    names = ["0.weight", "0.bias", "2.weight", "a", "input"]
    for i, evil in enumerate([n for n in crafted.NAMES if n and "\x00" not in n and len(n) < 300 and "weight" not in n]):
        from onnx import ModelProto

        whole = crafted._whole_onnx()
        model = ModelProto.FromString(whole)
        old = names[i % len(names)]
        for holder in [*model.graph.initializer, *model.graph.input, *model.graph.node]:
            holder.name = evil if holder.name == old else holder.name
        for n in model.graph.node:
            n.input[:] = [evil if v == old else v for v in n.input]
            n.output[:] = [evil if v == old else v for v in n.output]
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with crafted.watched():
            found = load_onnx(tmp_path / "m.onnx")
            assert found(torch.ones(2, 4)).shape == (2, 2)
        assert all(is_path(n) for n, _ in found.named_parameters())


# --- weights ------------------------------------------------------------------------------------------------------------------


def test_a_pickle_that_asks_for_memory_is_refused(tmp_path: Path) -> None:
    room = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R."
    files = {"a/data.pkl": room, "a/version": b"3\n", "a/byteorder": b"little"}
    refused(read_weights, "w.pt", crafted.zipped(files), "builtins.bytearray")
    tensor = room.replace(b"builtins\nbytearray", b"torch\nFloatTensor")
    refused(read_weights, "w.pt", crafted.zipped(files | {"a/data.pkl": tensor}), "torch.FloatTensor")


def test_a_pickle_in_weights_is_never_opened() -> None:
    stream = io.BytesIO()
    torch.save({"state_dict": crafted.Trap()}, stream)
    refused(read_weights, "w.pt", stream.getvalue(), "can run any code")
    refused(read_weights, "w.bin", pickle.dumps(crafted.Trap(), protocol=2), "pickle, and reading one can run any code")
    Path("w.pt").write_bytes(stream.getvalue() + crafted.exported())  # glued: one kind at most, and none runs
    assert kind_of(Path("w.pt")) == "pt2"
    with crafted.watched(), pytest.raises(InvalidInput, match="more than its zip archive"):
        load_exported(Path("w.pt"))
    with crafted.watched(), pytest.raises(InvalidInput):
        read_weights(Path("w.pt"))


def test_a_network_larger_than_its_weights_is_not_built() -> None:
    folder = Path("run")
    folder.mkdir()
    (folder / CONFIG).write_text(to_yaml(TrainSettings()))
    about = {"built_for": json.dumps({"input_shape": [10**6, 10**5], "classes": 10})}
    save_file({"1.weight": torch.zeros(2, 2)}, folder / WEIGHTS, about)
    with pytest.raises(InvalidInput, match="not written by 'nonsingular train'"):
        load_run(folder)


# --- what a file declares is checked before it is read ------------------------------------------------------------------------


def npy(shape: str, kind: str = "<f4", data: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + data


def npz_of_zeros(gigabytes: int) -> bytes:
    """An archive that declares far more than it holds: its one block of zeros is a thousandth of what it unpacks to."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy("(1, 4)", data=bytes(2**20)))
        archive.writestr("y.npy", npy("(1,)", "<i8", bytes(8)))
    data = bytearray(stream.getvalue())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", min(gigabytes << 30, 2**32 - 2))
    return bytes(data)


def test_an_npz_that_declares_gigabytes_is_refused() -> None:
    refused(load, "a.npz", npz_of_zeros(4), r"declares 4,096.0 MiB in a file of .* at most 256.0 MiB are read")


@pytest.mark.parametrize(
    "array",
    [npy("(4000000000, 4)"), npy("(99999999999, 99999999999)"), npy("(-1, 4)"), npy("(2, 4)", "|O", b"N."), npy("(2, 4)")],
)
def test_an_array_must_hold_what_its_header_says(array: bytes) -> None:
    held = crafted.zipped({"x.npy": array, "y.npy": npy("(2,)", "<i8", bytes(16))})
    refused(load, "a.npz", held, "declares|cannot be read")
    refused(lambda p: Split(torch.zeros(5, 1), torch.zeros(5)).pick(p), "i.npy", array, "declares|cannot be read")


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "x.npy/", "a\\..\\x.npy", "C:x.npy", "\u202ex.npy"])
def test_names_that_lead_out_of_an_archive_are_refused(name: str) -> None:
    refused(load, "a.npz", crafted.zipped({name: npy("(1, 2)", data=bytes(8))}), "not a plain name")


def test_a_packed_file_of_zeros_is_refused_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr("nonsingular.untrusted.FLOOR", 2**16)
    Path("t-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x01\x00")
    bomb = b"\x00\x00\x08\x03" + struct.pack(">III", 1, 2**11, 2**11) + bytes(2**22)
    refused(load, "t-images-idx3-ubyte.gz", gzip.compress(bomb), "declares .* at most")


def test_pictures_that_unpack_to_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonsingular.untrusted.FLOOR", 2**16)
    Path("data/cat").mkdir(parents=True)
    for i in range(3):
        Image.new("L", (400, 400)).save(f"data/cat/{i}.png")
    with pytest.raises(InvalidInput, match="with 2 more images of its size, declares"):
        load("data")


def test_a_header_of_a_picture_of_gigabytes_is_refused() -> None:
    Path("data/cat").mkdir(parents=True)
    Path("data/cat/0.ppm").write_bytes(b"P5 100000 100000 255\n")
    with pytest.raises(InvalidInput, match="DecompressionBomb"):
        load("data")


def test_a_table_of_rows_without_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("nonsingular.untrusted.FLOOR", 2**16)
    table = pa.table({"x": pa.array(np.zeros(400_000)), "label": pa.array(np.zeros(400_000, np.int64))})
    pq.write_table(table, "a.parquet")
    with pa.ipc.new_file("a.arrow", pa.schema([("x", pa.null()), ("label", pa.null())])) as out:
        out.write_table(pa.table({"x": pa.nulls(2**30), "label": pa.nulls(2**30)}))
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(InvalidInput, match="at most"):
            load(name)


def test_arrow_offsets_that_lead_out_of_the_file_are_refused() -> None:
    """pyarrow follows them into memory that is not its own when it counts the bytes of a batch."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"x": [["a", "b"]] * 3, "label": [0, 1, 0]})
    with pa.ipc.new_stream("a.arrow", table.schema) as out:
        out.write_table(table)
    data, offsets = Path("a.arrow").read_bytes(), np.array([0, 2, 4, 6], "<i4").tobytes()
    assert offsets in data
    Path("a.arrow").write_bytes(data.replace(offsets, np.array([0, 2, 4, 2**30], "<i4").tobytes()))
    with pytest.raises(InvalidInput, match="truncated or damaged"):
        load("a.arrow")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", r"refers to another place with \*a"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "refers to another place"),
        ("x: " + "y" * 2**18, "at most 262,144"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("[" * 60, "nests values 20 deep"),
    ],
)
def test_settings_that_unfold_or_run_are_refused(text: str, message: str) -> None:
    refused(read_config, "c.yaml", text.encode(), message)


def test_a_message_quotes_little_of_a_large_value() -> None:
    with pytest.raises(InvalidInput) as e:
        checked(EvaluateSettings, {"model": "m", "batch_size": ["x" * 10**6] * 100})
    assert len(str(e.value)) < 500


def test_outcomes_that_are_declared_and_not_there_are_refused() -> None:
    d = {"eps_x": 0.0, "eps_w": 0.0, "n": 2**40, "correct": pack(np.ones(3, bool)), "seconds": 0.0, "flags": []}
    with pytest.raises(InvalidInput, match="are declared, and 8 recorded"):
        Cell.from_dict(d)


# --- what is written ----------------------------------------------------------------------------------------------------------

EVIL = "=1+2\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u2066\r\n</script><img src=x onerror=alert(1)>|`[a](javascript:b)` https://evil.example"


def evil_results() -> Any:
    found = crafted.results()
    (entry,) = found["models"].values()
    entry["title"] = entry["surfaces"][0]["model"] = entry["surfaces"][0]["attack"] = EVIL
    entry["surfaces"][0]["flags"] = [{"row": 1, "column": 1, "flags": [EVIL]}]
    entry["examples"]["first"][0]["weights"][0]["tensor"] = EVIL
    entry["surfaces"][0]["about"]["data_sha256"] = EVIL
    entry["masking"] |= {"flags": {EVIL: EVIL}, "numbers": {EVIL: 0.5}}
    found["data"] |= {"name": EVIL, "classes": [EVIL, "=b"], "sha256": EVIL}
    environment = {"versions": {EVIL: EVIL}, "platform": EVIL, "git": EVIL, EVIL: EVIL}
    found |= {"command": EVIL, "config": {EVIL: EVIL}, "environment": environment, "models": {EVIL: entry}}
    return found


def test_no_output_obeys_a_name() -> None:
    found = evil_results()
    written = {
        "page": page([found]), "markdown": markdown(found), "csv": cells_csv([found]),
        "junit": junit(EVIL, [Checked(EVIL, Gate(0.5), 0.1)]),
        "svg": render(contours({EVIL: read(found)[0].runs.surfaces}), "svg").decode(),
    }  # fmt: skip
    for text in written.values():
        crafted.check_text(text)
    outside_code = "\n".join(line for line in written["markdown"].splitlines() if not line.startswith("    "))
    assert "<img src=x" not in written["page"] + outside_code + written["svg"]
    assert written["page"].count("</script>") == written["page"].count("<script")
    assert "\\[a\\]" in written["markdown"] and "https\\://evil" in written["markdown"]
    assert EVIL[:4] not in (row[0][:4] for row in csv.reader(io.StringIO(written["csv"])))
    ET.fromstring(written["junit"].partition("\n")[2])


def test_cells_of_a_table_are_no_formulas() -> None:
    for text in ("=1+2", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "\uff1d1", "|a", "%a"):
        assert cell(text)[0] == "'"
    for text in ("mlp", "0.5", "1e-05", "", "a=b"):
        assert cell(text) == text
    rows = list(csv.DictReader(io.StringIO(cells_csv([evil_results()]))))
    assert all(row["model"].startswith("'=1+2\\x1b") and row["data"][0] == "'" and 0 <= float(row["low"]) <= 1 for row in rows)


def test_what_is_not_seen_is_written_out() -> None:
    shown = legible(EVIL + "\u2028\u200b\ud800\x9b\ufeff\U000e0041")
    crafted.check_text(shown)
    assert "\\x1b[2J\\u202egnp.exe\\u2066\\r\n" in shown
    assert legible("ε ≤ 0.1 é 漢字 \u0645\u06cc\u200c\u0631\u0648\u0645") == "ε ≤ 0.1 é 漢字 \u0645\u06cc\u200c\u0631\u0648\u0645"
    assert legible_all({"a\x1b": ["\x07", 1, None, {"b": "\u202e"}]}) == {"a\\x1b": ["\\x07", 1, None, {"b": "\\u202e"}]}


def test_errors_logs_and_tables_on_the_terminal_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in str(InvalidInput(f"there is no file {EVIL}"))
    assert main(["check", f"run\x1b[2J\u202e{crafted.CANARY}", "--min-auc", "0.1"]) == 2
    run = Path("run")
    run.mkdir()
    (run / RESULTS).write_text(json.dumps(evil_results()))
    assert main(["report", "run"]) == 0
    assert main(["check", "run", "--min-auc", "0.1", "--junit", "j.xml"]) == 0
    screen.print_table(model_table(evil_results()))
    record = logging.LogRecord("nonsingular", logging.WARNING, "", 1, "warning: %s", (EVIL,), None)
    crafted.check_text(screen.PlainLines("%(message)s").format(record))
    told = capsys.readouterr()
    crafted.check_text(told.out + told.err)
    crafted.check_text((run / "report.html").read_text() + (run / "report.md").read_text() + (run / "figure1.svg").read_text())


def test_settings_are_written_plain_and_read_back() -> None:
    settings = checked(EvaluateSettings, {"model": "m\u202e\x1b.py:f", "data": "ε"})
    crafted.check_text(to_yaml(settings))
    assert checked(EvaluateSettings, yaml.safe_load(to_yaml(settings))) == settings


# --- a little of the long run -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["pt2", "onnx", "torch", "safetensors", "run", "results", "perturbations", "texts", "npz-zip"])
def test_crafted_files_are_read_or_refused(target: str) -> None:
    for seed in range(8):
        assert fuzz.check(target, seed) in ("read", "refused")
