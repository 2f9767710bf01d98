"""test_readers.py - files that the test writes itself, read back; and every likely mistake in them, called by its name."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import nonsingular as ns
from nonsingular.checks import check_inputs
from nonsingular.cli import main
from nonsingular.data import Split, as_tensors, load
from nonsingular.errors import InvalidInput
from nonsingular.threat import JointBall

Image = pytest.importorskip("PIL.Image")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
N = 12


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def numbers(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, *shape)).astype(np.float32)


def picture(array: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def image_folder(root: Path, x: np.ndarray, y: np.ndarray, names: list[str], suffix: str = "png") -> None:
    """class/number.png, in the order of x within each class."""
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = root / names[label] / f"{i:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(image))


def hugging_face(columns: dict[str, Any], names: list[str] | None = None, label: str = "label") -> Any:
    """A table as `datasets` writes it."""
    table = pa.table(columns)
    if names is None:
        return table
    features = {label: {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


# ---- npz: its own domain ---------------------------------------------------------------------------------------------


def test_x_and_y_are_the_test_split(tmp_path: Path) -> None:
    x, y = pixels(N, 1, 4, 4), np.arange(N) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    d = load(str(tmp_path / "a.npz"))
    assert tuple(map(len, (d.train, d.val, d.test))) == (0, 0, N)
    assert torch.equal(d.test.x, torch.tensor(x) / 255)
    assert d.domain == (0.0, 1.0)


@pytest.mark.parametrize("own, domain", [([-4.0, 4.0], (-4.0, 4.0)), ([], None)])
def test_a_file_says_its_own_domain(tmp_path: Path, own: list[float], domain: Any) -> None:
    x = np.clip(numbers(N, 5), -4, 4)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(N) % 3, domain=own)
    d = load(str(tmp_path / "a.npz"))
    assert d.domain == domain
    assert torch.equal(d.test.x, torch.tensor(x))


def test_the_domain_asked_for_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(path, x=numbers(N, 5), y=np.arange(N) % 3)
    with pytest.raises(InvalidInput, match=r"a\.npz, test split: .*outside the domain \[0.0, 1.0\].*radii are in the units"):
        load(path)
    assert load(path, domain=None).domain is None
    assert load(path, domain=(-5, 5)).domain == (-5, 5)
    with pytest.raises(InvalidInput, match=r"outside the domain \[-1, 1\]"):
        load(path, domain=(-1, 1))


@pytest.mark.parametrize("own", [[0.0], [1.0, 0.0], [0.0, np.nan], ["a", "b"], [[0.0, 1.0]]])
def test_a_domain_that_is_none_is_refused(tmp_path: Path, own: Any) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((N, 5)), y=np.arange(N) % 3, domain=own)
    with pytest.raises(InvalidInput, match=r"domain is .*; expected the lowest and the highest"):
        load(str(tmp_path / "a.npz"))


# ---- folders of images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 4)])
def test_images_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x, y = pixels(N, *shape), np.arange(N) % 3
    image_folder(tmp_path / "pets", x, y, ["cat", "dog", "eel"])
    (tmp_path / "pets" / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "pets" / ".hidden").mkdir()
    d = load(str(tmp_path / "pets"))
    assert (d.name, d.classes, d.domain) == ("pets", ("cat", "dog", "eel"), (0.0, 1.0))
    order = np.argsort(y, kind="stable")
    assert d.test.y.tolist() == y[order].tolist()
    expected = x[order][:, None] if x.ndim == 3 else x[order].transpose(0, 3, 1, 2)
    assert torch.equal(d.test.x, torch.tensor(expected) / 255)


def test_splits_of_images(tmp_path: Path) -> None:
    x, y = pixels(40, 4, 4), np.arange(40) % 2
    for name, part in (("train", slice(0, 20)), ("val", slice(20, 30)), ("test", slice(30, 40))):
        image_folder(tmp_path / name, x[part], y[part], ["a", "b"])
    d = load(str(tmp_path))
    assert tuple(map(len, (d.train, d.val, d.test))) == (20, 10, 10)
    assert torch.equal(d.val.x, torch.tensor(x[20:30][np.argsort(y[20:30], kind="stable")][:, None]) / 255)
    for file in (tmp_path / "val").rglob("*.png"):
        file.rename(file.parents[2] / "train" / file.parent.name / f"v{file.name}")
    for folder in (*(tmp_path / "val").iterdir(), tmp_path / "val"):
        folder.rmdir()
    assert tuple(map(len, ((e := load(str(tmp_path))).train, e.val, e.test))) == (27, 3, 10)  # a tenth is set aside


def test_classes_that_are_numbers_are_in_the_order_of_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_folder(tmp_path, pixels(N, 4, 4), np.arange(N), [str(i) for i in range(N)])
    d = load(str(tmp_path))
    assert d.classes[:3] == ("0", "1", "10")
    assert "10 comes before 2" in caplog.text


def big(folder: Path) -> None:
    (folder / "b" / "003.png").write_bytes(picture(pixels(5, 4)))


IMAGES = {
    "size": (big, r"003\.png is 5 x 4 L; expected 4 x 4 L as before it; .*resizing and converting belong to your preprocessing"),
    "mode": (lambda f: (f / "b" / "003.png").write_bytes(picture(pixels(4, 4, 3))), r"003\.png is 4 x 4 RGB; expected 4 x 4 L"),
    "depth": (
        lambda f: (f / "a" / "000.png").write_bytes(picture(np.zeros((4, 4), np.uint16))),
        r"000\.png is 4 x 4 I;16; expected one of the modes L, RGB, RGBA",
    ),
    "damage": (lambda f: (f / "a" / "002.png").write_bytes(b"<html>"), r"002\.png is missing or damaged"),
    "cut": (lambda f: (p := f / "a" / "002.png").write_bytes(p.read_bytes()[:50]), r"002\.png is missing or damaged"),
    "empty class": (lambda f: (f / "c").mkdir(), r"c holds no images"),
    "loose": (lambda f: (f / "x.png").write_bytes(b""), r"images without classes \(x\.png\)"),
    "splits beside classes": (lambda f: image_folder(f / "test", pixels(2, 4, 4), np.arange(2), ["a", "b"]), "splits test and a"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGES)
def test_images_refused(tmp_path: Path, case: str) -> None:
    damage, message = IMAGES[case]
    image_folder(tmp_path, pixels(N, 4, 4), np.arange(N) % 2, ["a", "b"])
    damage(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        load(str(tmp_path))


def test_splits_with_other_classes_or_sizes(tmp_path: Path) -> None:
    for name, classes, size in (("train", ["a", "b"], 4), ("test", ["a", "c"], 4)):
        image_folder(tmp_path / "names" / name, pixels(4, size, size), np.arange(4) % 2, classes)
    with pytest.raises(InvalidInput, match="holds other classes than the other splits do: b, c"):
        load(str(tmp_path / "names"))
    for name, size in (("train", 4), ("test", 5)):
        image_folder(tmp_path / "sizes" / name, pixels(4, size, size), np.arange(4) % 2, ["a", "b"])
    with pytest.raises(InvalidInput, match=r"splits of different images \(.*test 5 x 5, 1 channels"):
        load(str(tmp_path / "sizes"))


# ---- IDX of any data set ---------------------------------------------------------------------------------------------


def idx_files(folder: Path, prefix: str, x: np.ndarray, y: np.ndarray, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", x), ("labels-idx1", y.astype(np.uint8))):
        path = folder / f"{prefix}-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder / f"{prefix}-images-idx3-ubyte{'.gz' if packed else ''}"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["kmnist", "kmnist/raw"])
def test_idx_of_any_data_set(tmp_path: Path, packed: bool, place: str) -> None:
    x, y = pixels(20, 6, 5), np.arange(20) % 4
    idx_files(tmp_path / place, "train", x, y, packed)
    one = idx_files(tmp_path / place, "t10k", x[:8], y[:8], packed)
    d = load(str(tmp_path / "kmnist"))
    assert tuple(map(len, (d.train, d.val, d.test))) == (18, 2, 8)
    assert torch.equal(d.test.x, torch.tensor(x[:8, None]) / 255)
    assert d.test.y.tolist() == y[:8].tolist()
    pair = load(str(one))
    assert (len(pair.test), len(pair.train)) == (8, 0)
    assert pair.test.sha256() == d.test.sha256()


def test_idx_refused(tmp_path: Path) -> None:
    x, y = pixels(8, 4, 4), np.arange(8) % 4
    path = idx_files(tmp_path / "a", "letters", x, y[:7])
    with pytest.raises(InvalidInput, match=r"holds \(8, 4, 4\) images and letters-labels-idx1-ubyte 7 labels"):
        load(str(path))
    (tmp_path / "a" / "letters-labels-idx1-ubyte").unlink()
    with pytest.raises(InvalidInput, match="lacks letters-labels-idx1-ubyte"):
        load(str(tmp_path / "a"))
    for name in ("letters-test", "digits-test"):
        idx_files(tmp_path / "b", name, x, y)
    with pytest.raises(InvalidInput, match=r"several data sets of IDX files \(digits-test, letters-test\); give the path of one"):
        load(str(tmp_path / "b"))
    assert len(load(str(tmp_path / "b" / "letters-test-images-idx3-ubyte")).test) == 8
    path = idx_files(tmp_path / "c", "f", x.astype(np.float32), y)
    with pytest.raises(InvalidInput, match="is 528 bytes long unpacked; its header says"):
        load(str(path))
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    with pytest.raises(InvalidInput, match=r"\[00 00 0d 03\].*no IDX file of unsigned bytes in 3 dimensions"):
        load(str(path))


# ---- parquet and Arrow in the style of Hugging Face ------------------------------------------------------------------


@pytest.mark.parametrize("place", ["data/{}-00000-of-00001.parquet", "default/{}/0000.parquet", "{}.parquet"])
def test_parquet_of_images(tmp_path: Path, place: str) -> None:
    x, y = pixels(20, 5, 4, 3), np.arange(20) % 2
    cells = [{"bytes": picture(i), "path": None} for i in x]
    for name, part in (("train", slice(0, 10)), ("validation", slice(10, 14)), ("test", slice(14, 20))):
        path = tmp_path / place.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(hugging_face({"image": cells[part], "label": y[part]}, ["cat", "dog"]), path)
    d = load(str(tmp_path))
    assert tuple(map(len, (d.train, d.val, d.test))) == (10, 4, 6)
    assert (d.classes, d.domain) == (("cat", "dog"), (0.0, 1.0))
    assert torch.equal(d.test.x, torch.tensor(x[14:].transpose(0, 3, 1, 2)) / 255)
    assert d.val.y.tolist() == y[10:14].tolist()


def test_parquet_of_numbers(tmp_path: Path) -> None:
    columns = {"age": np.arange(N), "label": np.array(["no", "yes"] * (N // 2)), "dose": numbers(N), "name": ["?"] * N}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    d = load(str(tmp_path / "a.parquet"))
    assert (d.domain, d.classes) == (None, ("no", "yes"))
    assert torch.equal(d.test.x, torch.tensor(np.stack([np.arange(N), numbers(N)], 1).astype(np.float32)))
    assert d.test.y.tolist() == [0, 1] * (N // 2)


@pytest.mark.parametrize("kind", ["lists", "lists of lists", "fixed", "bytes"])
def test_parquet_of_lists(tmp_path: Path, kind: str) -> None:
    x, y = numbers(N, 3, 2), np.arange(N) % 3
    flat = x.reshape(N, 6)
    expected, cells = {
        "lists": (flat, pa.array(flat.tolist(), pa.list_(pa.float32()))),
        "lists of lists": (x, pa.array(x.tolist(), pa.large_list(pa.list_(pa.float32())))),
        "fixed": (flat, pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 6)),
        "bytes": (pixels(N, 6) / np.float32(255), pa.array(pixels(N, 6).tolist(), pa.list_(pa.uint8()))),
    }[kind]
    pq.write_table(pa.table({"y": y, "embedding": cells}), tmp_path / "a.parquet")
    d = load(str(tmp_path / "a.parquet"))
    assert torch.equal(d.test.x, torch.tensor(expected))
    assert d.domain == ((0.0, 1.0) if kind == "bytes" else None)
    assert d.test.y.tolist() == y.tolist()


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_as_save_to_disk_writes_it(tmp_path: Path, form: str) -> None:
    table = hugging_face({"x": numbers(N, 4).tolist(), "target": np.arange(N) % 3}, ["a", "b", "c", "d"], "target")
    for part, name in ((slice(0, 8), "data-00000-of-00002.arrow"), (slice(8, N), "data-00001-of-00002.arrow")):
        path = tmp_path / "test" / name
        path.parent.mkdir(exist_ok=True)
        with (pa.ipc.new_stream if form == "stream" else pa.ipc.new_file)(str(path), table.schema) as out:
            out.write_table(table.slice(part.start, part.stop - part.start))
    (tmp_path / "dataset_dict.json").write_text("{}")
    d = load(str(tmp_path))
    assert torch.equal(d.test.x, torch.tensor(numbers(N, 4)))
    assert d.classes == ("a", "b", "c", "d")
    path.unlink()
    with pytest.raises(InvalidInput, match="holds 1 of the 2 files of which data-00000-of-00002"):
        load(str(tmp_path))


GOOD = {"x": [[0.5, 0.5]] * N, "label": [0, 1] * (N // 2)}
PARQUET = {
    "no labels": ({"x": GOOD["x"]}, r"has columns \['x'\]; expected one of labels"),
    "empty": ({"x": [], "label": []}, "holds no rows"),
    "labels missing": ({**GOOD, "label": [None, *GOOD["label"][1:]]}, "with 1 cells empty; expected whole numbers or names"),
    "labels in float": ({**GOOD, "label": [0.5] * N}, "column 'label' is double"),
    "labels negative": ({**GOOD, "label": [-1] * N}, "holds -1; class indices start at 0.*no label"),
    "labels in lists": ({**GOOD, "label": [[0, 1]] * N}, "column 'label' is list"),
    "ragged": ({**GOOD, "x": [[0.5, 0.5]] * 5 + [[0.5]] + [[0.5, 0.5]] * (N - 6)}, "no one shape: .*one in row 5"),
    "lists missing": ({**GOOD, "x": [None] + [[0.5, 0.5]] * (N - 1)}, "no one shape"),
    "empty lists": ({**GOOD, "x": [[]] * N}, "no one shape|expected numbers"),
    "values missing": ({**GOOD, "x": [[None, 0.5]] + [[0.5, 0.5]] * (N - 1)}, "with 1 values empty"),
    "token ids": ({**GOOD, "x": [[5, 6]] * N}, "token ids"),
    "text": ({**GOOD, "x": ["hello"] * N}, "Text has no ℓ∞ radius: give its embeddings"),
    "nan": ({**GOOD, "x": [[float("nan"), 0.5]] + [[0.5, 0.5]] * (N - 1)}, "NaN.* in 1 rows, first in row 0"),
    "two lists": ({**GOOD, "z": GOOD["x"]}, r"several columns of inputs \(x, z\)"),
    "cells missing": ({"a": [None, *range(1, N)], "label": GOOD["label"]}, "column 'a' has 1 empty cells"),
    "paths": ({"image": [{"bytes": None, "path": "a.png"}] * N, "label": GOOD["label"]}, "row 0 .*missing or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARQUET)
def test_parquet_refused(tmp_path: Path, case: str) -> None:
    columns, message = PARQUET[case]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=rf"a\.parquet.*{message}"):
        load(str(tmp_path / "a.parquet"))


def test_files_that_name_no_split_beside_some_that_do(tmp_path: Path) -> None:
    for name in ("train.parquet", "more.parquet"):
        pq.write_table(pa.table(GOOD), tmp_path / name)
    with pytest.raises(InvalidInput, match=r"more\.parquet names no split, but other files do"):
        load(str(tmp_path))


# ---- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a,b,label\n1,2.5,0\n3,-4,2\n", "label,a,b\n0,1,2.5\n2,3,-4\n", "1,2.5,0\n3,-4,2\n", "a,b,c\n1,2.5,0\n3,-4,2"]
)
def test_csv(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    d = load(str(tmp_path / "a.csv"))
    assert d.test.x.tolist() == [[1.0, 2.5], [3.0, -4.0]]
    assert d.test.y.tolist() == [0, 2]
    assert (d.domain, d.classes) == (None, ("0", "1", "2"))


def test_csv_in_a_folder_with_names(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("1,spam\n2,ham\n3,spam\n")
    (tmp_path / "test.csv").write_text("4,spam\n5,eggs\n")
    d = load(str(tmp_path))
    assert d.classes == ("eggs", "ham", "spam")
    assert (d.test.x.tolist(), d.test.y.tolist()) == ([[4.0], [5.0]], [2, 0])


@pytest.mark.parametrize(
    "text, message",
    [("", "holds 0 rows"), ("1,2\n", "holds 1 rows"), ("1,0\n2\n", "row 2 has 1 cells"),
     ("a,y\nb,0\n", "'b', which is no number"), ("1,0\n,1\n", "row 2 has an empty cell"), ("1,0\nnan,1\n", "NaN"),
     ("1,-1\n2,0\n", "holds -1"), ("1\n2\n", "two or more columns")],
)  # fmt: skip
def test_csv_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        load(str(tmp_path / "a.csv"))


# ---- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an address where nobody answers."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def cached(hub: Path, repository: str, files: dict[str, Any]) -> None:
    """What huggingface_hub leaves in its cache."""
    root = hub / f"datasets--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    for name, table in files.items():
        path = root / "snapshots" / ("a" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def test_the_hub_from_its_cache(hub: Path) -> None:
    table = hugging_face({"v": numbers(N, 4).tolist(), "label": np.arange(N) % 2}, ["no", "yes"])
    cached(hub, "me/mine", {f"{c}/test-00000-of-00001.parquet": table for c in ("plain", "other")})
    d = load("hf:me/mine:plain")
    assert torch.equal(d.test.x, torch.tensor(numbers(N, 4)))
    assert (d.name, d.classes) == ("hf:me/mine:plain", ("no", "yes"))


@pytest.mark.parametrize("name", ["hf:me/mine", "hf:me/mine:third"])
def test_the_hub_without_a_network(hub: Path, name: str) -> None:
    cached(hub, "me/mine", {f"{c}/test-00000-of-00001.parquet": pa.table(GOOD) for c in ("plain", "other")})
    with pytest.raises(InvalidInput, match=r"not in the cache and could not be loaded.*--data \./mine.*digits"):
        load(name)


class FakeHub:
    """A Hub that answers."""

    def __init__(self, root: Path, files: dict[str, Any]) -> None:
        self.root, self.files, self.asked = root, files, []

    HfApi = property(lambda self: lambda: self)

    def dataset_info(self, repository: str, *, revision: str, **more: Any) -> Any:
        class Of:
            def __init__(self, **values: Any) -> None:
                self.__dict__ |= values

        return Of(siblings=[Of(rfilename=name, size=1000) for name in self.files if revision != "main"])

    def snapshot_download(self, repository: str, *, local_files_only: bool = False, **more: Any) -> str:
        if local_files_only:
            raise FileNotFoundError("not cached")
        self.asked = more["allow_patterns"]
        for name in self.asked:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self.files[name], self.root / name)
        return str(self.root)


def test_the_hub_is_asked_for_one_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeHub(tmp_path, {f"{c}/test/0000.parquet": pa.table(GOOD) for c in ("plain", "other")})
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    with pytest.raises(InvalidInput, match=r"several configs \(other, plain\); choose one: hf:me/mine:other"):
        load("hf:me/mine")
    with pytest.raises(InvalidInput, match="there is no config 'third'; it has other, plain"):
        load("hf:me/mine:third")
    assert len(load("hf:me/mine:plain").test) == N
    assert fake.asked == ["plain/test/0000.parquet"]


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InvalidInput, match=r"pip install 'nonsingular\[hub\]'.*--data \./mine"):
        load("hf:me/mine")


# ---- rows of a split -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["i.npy", "i.txt", "i.json"])
def test_indices(tmp_path: Path, name: str) -> None:
    split, path = Split(torch.arange(10.0)[:, None], torch.arange(10)), tmp_path / name
    write = {
        "npy": lambda: np.save(path, [7, 0, 3]),
        "txt": lambda: path.write_text("7\n0\n3\n"),
        "json": lambda: path.write_text("[7, 0, 3]"),
    }
    write[path.suffix[1:]]()
    assert split.pick(path).y.tolist() == [7, 0, 3] == split.pick(path).x[:, 0].tolist()


@pytest.mark.parametrize(
    "name, text, message",
    [("i.txt", "3\n3\n", "3 more than once"), ("i.txt", "-1", r"holds -1; the rows of this split are 0\.\.9"),
     ("i.txt", "10", "holds 10"), ("i.txt", "1.5", "cannot be read"), ("i.txt", "", "one or more"),
     ("i.json", "[]", "one or more"),
     ("i.json", "[true]", "no list of"),
     ("i.json", "{", "cannot be read"), ("i.json", "[1e3]", "no list"),
     ("i.json", str(2**70).join("[]"), "expected one or more whole"),
     ("i.npy", "x", "cannot be read"), ("i.csv", "1", "expected .npy"), ("nowhere.txt", None, "does not exist")],
)  # fmt: skip
def test_indices_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInput, match=message):
        Split(torch.zeros(10, 1), torch.zeros(10, dtype=torch.long)).pick(tmp_path / name)


# ---- what Python users have ------------------------------------------------------------------------------------------

X, Y = torch.tensor(numbers(N, 4)), torch.arange(N) % 3


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return zip(X, Y.tolist(), strict=True)


SAME = {
    "tensors": lambda: (X, Y),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "lists": lambda: [X.tolist(), Y.tolist()],
    "split": lambda: Split(X, Y),
    "dataset": lambda: TensorDataset(X, Y),
    "whole numbers": lambda: [(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)],
    "subset": lambda: Subset(TensorDataset(X.flip(0), Y.flip(0)), range(N - 1, -1, -1)),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=5),
    "loader that shuffles": lambda: DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, drop_last=True),
    "loader of one": lambda: DataLoader(TensorDataset(X, Y), batch_size=None),
    "own collate": lambda: DataLoader(
        TensorDataset(X, Y), batch_size=5, collate_fn=lambda b: (torch.stack([x for x, _ in b]), torch.stack([y for _, y in b]))
    ),
    "stream": Stream,
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=5),
}


@pytest.mark.parametrize("case", SAME)
def test_as_tensors(case: str) -> None:
    x, y = as_tensors(SAME[case]())
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


class Moving(TensorDataset):
    def __getitem__(self, i: int) -> Any:
        return X[i] + torch.rand(4), Y[i]


REFUSED = {
    "one tensor": (lambda: X, r"data is a Tensor of shape \(12, 4\); give \(x, y\)"),
    "three": (lambda: (X, Y, Y), "example 0 of the data set is a Tensor"),
    "text": (lambda: "digits", "data is a str"),
    "none": (lambda: None, "data is a NoneType"),
    "three splits": (lambda: load("digits"), r"three splits \(digits\); give one of them, e.g. data.test"),
    "ragged pair": (lambda: ([[1.0], [1.0, 2.0]], [0, 1]), "x is a list of 2 and no array of numbers"),
    "ragged data set": (lambda: [(X[0], 0), (X[1, :3], 1), (X[2], 0)], r"example 1 has shape \(3,\), the first \(4,\)"),
    "ragged loader": (lambda: DataLoader([(X[0], 0), (X[1, :3], 1)], batch_size=2), "cannot be put together"),
    "empty": (lambda: TensorDataset(X[:0], Y[:0]), "the data set is empty"),
    "dictionaries": (lambda: [{"image": X[0], "label": 0}] * 3, r"a dict with keys \['image', 'label'\].*expected \(x, y\)"),
    "images": (lambda: [(Image.new("L", (4, 4)), 0)] * 3, r"an image\? Give the data set a transform to tensors"),
    "chance": (
        lambda: DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler(range(5))),
        "draws its examples by SubsetRandom",
    ),
    "weighted": (
        lambda: DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * N, N)),
        "by WeightedRandomSampler",
    ),
    "replacement": (
        lambda: DataLoader(TensorDataset(X, Y), sampler=torch.utils.data.RandomSampler(TensorDataset(X, Y), replacement=True)),
        "by RandomSampler",
    ),
    "augmentation": (lambda: Moving(X, Y), r"not the same twice: a random transform"),
    "augmentation in a loader": (lambda: DataLoader(Moving(X, Y)), r"not the same twice"),
    "loader of three": (lambda: DataLoader(TensorDataset(X, Y, Y)), r"expected \(x, y\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_as_tensors_refuses(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message):
        as_tensors(make())


@pytest.mark.parametrize("case", ["arrays", "dataset", "loader that shuffles"])
def test_the_three_functions_take_them(case: str) -> None:
    model = nn.Linear(4, 3).eval()
    common = {"eps_x": [0.0, 0.1], "eps_w": [0.0], "domain": None}
    for function in (ns.evaluate, ns.certified_surface):
        a, b = function(model, SAME[case](), **common), function(model, (X, Y), **common)
        assert a.accuracy.tolist() == b.accuracy.tolist()
        assert a.about["data_sha256"] == b.about["data_sha256"]
    ball = JointBall(0.1, 0.0, None)
    assert ns.masking(model, SAME[case](), ball).numbers == ns.masking(model, (X, Y), ball).numbers


# ---- mistakes and doubts ---------------------------------------------------------------------------------------------


def linear(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes))).eval()


def conv(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


class Of(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.inner = function, linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.inner(x))


U = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
V = torch.arange(30) % 3
NHWC = torch.rand(30, 4, 4, 3)
MISTAKES = {
    "0-255": (lambda: linear(4, 3), U * 255, V, r"0-255 pixels\? divide by 255.*radii are in the units of the inputs"),
    "normalised": (lambda: linear(4, 3), U * 4 - 2, V, r"normalisation belongs to the model: ns\.Normalized\(model, mean, std\)"),
    "nan": (lambda: linear(4, 3), U.clone().index_fill_(0, torch.tensor([7]), torch.nan), V, "in 1 examples, first in number 7"),
    "bytes": (lambda: linear(4, 3), (U * 255).byte(), V, r"x\.float\(\) / 255"),
    "token ids": (lambda: linear(4, 3), (U * 255).long(), V, "token ids: give their embeddings"),
    "channels last": (conv, NHWC, V, r"channels last\? Give x\.permute\(0, 3, 1, 2\)"),
    "no channel": (lambda: conv(1), NHWC[..., 0], V, r"x\.unsqueeze\(1\)"),
    "not flat": (lambda: linear(48, 3), NHWC, V, r"x\.flatten\(1\)"),
    "float64": (lambda: linear(4, 3), U.double(), V, r"float64: its weights are torch\.float32; give x\.to\(torch\.float32\)"),
    "float32 for float64": (lambda: linear(4, 3).double(), U, V, r"give x\.to\(torch\.float64\)"),
    "another device": (lambda: linear(4, 3).to("meta"), U, V, r"the model is on meta and x on cpu"),
    "from 1": (lambda: linear(4, 3), U, V + 1, r"do they start at 1\? Give y - 1"),
    "too large": (lambda: linear(4, 3), U, V + 2, r"labels span 2\.\.4, but the model has 3 classes"),
    "one-hot": (lambda: linear(4, 3), U, torch.eye(3)[V], r"one-hot\? give y\.argmax\(1\)"),
    "column": (lambda: linear(4, 3), U, V[:, None], r"y\.squeeze\(1\)"),
    "labels in float": (lambda: linear(4, 3), U, V.float(), r"y\.long\(\)"),
    "labels in bool": (lambda: linear(4, 3), U, V > 0, r"y\.long\(\)"),
    "tuple": (lambda: Of(lambda z: (z, z)), U, V, "the model returns a tuple, not a tensor"),
    "one logit": (lambda: linear(4, 1), U, V, r"torch\.stack\(\[-z, z\], 1\)"),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout()), U, V, r"train mode .*call model\.eval\(\) first"),
    "forward fails": (lambda: Of(lambda z: {}["a"]), U, V, "does not accept inputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_called_by_their_names(case: str) -> None:
    make, x, y, message = MISTAKES[case]
    with pytest.raises(InvalidInput, match=message) as error:
        check_inputs(make(), x, y, JointBall(0.1, 0.1))
    assert len(str(error.value).splitlines()) == 1


def best(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return linear(4, 3)(x).argmax(1)


def test_no_doubt_about_good_data() -> None:
    assert check_inputs(linear(4, 3), U, best(U), JointBall(0.1, 0.1), classes=3) == []


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), linear(4, 3))


PIXELS = torch.rand(30, 1, 2, 2)
DOUBTS = {
    "probabilities": (lambda: nn.Sequential(linear(4, 3), nn.Softmax(1)), U, best(U), (0, 1), 3, "returns probabilities"),
    "chance": (lambda: linear(4, 3), U, (best(U) + 1) % 3, (0, 1), 3, r"0\.0 % of 30 .* chance \(33\.3 %\)"),
    "one class": (lambda: linear(4, 3), best(U)[:, None] * 0 + U, best(U) * 0, (0, 1), 3, "all 30 labels are 0"),
    "classes": (lambda: linear(4, 3), U, best(U), (0, 1), 5, "3 logits and the data 5 classes"),
    "pixels without a domain": (flat, PIXELS * 255, V, None, 3, "without a domain"),
    "divided, domain not": (flat, PIXELS, V, (0, 255), 3, r"were they divided by 255\?"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTS)
def test_doubts(case: str) -> None:
    make, x, y, domain, classes, message = DOUBTS[case]
    doubts = check_inputs(make(), x, y, JointBall(0.1, 0.1, domain), classes=classes)
    assert any(re.search(message, doubt) for doubt in doubts)


def test_log_probabilities_raise_no_doubt() -> None:
    assert check_inputs(nn.Sequential(linear(4, 3), nn.LogSoftmax(1)), U, best(U), JointBall(0.1, 0.1)) == []


def test_evaluate_shows_its_doubts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="nonsingular"):
        ns.evaluate(linear(4, 3), (U, (best(U) + 1) % 3), eps_x=[0.0], eps_w=[0.0])
    assert "no better than chance" in caplog.text
    caplog.clear()
    ns.evaluate(linear(4, 3), (U, best(U)), eps_x=[0.0], eps_w=[0.0])
    assert caplog.text == ""


# ---- the command line ------------------------------------------------------------------------------------------------

MODELS = """
import torch
from torch import nn

def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))

def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3))

def double():
    return flat().double()

def softmax():
    return nn.Sequential(flat(), nn.Softmax(1))

def one():
    return nn.Linear(4, 1)

def pair():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = flat()
        def forward(self, x):
            return self.inner(x), x
    return Pair()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder full of bad data, and some good."""
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(MODELS)
    x, y = np.random.default_rng(0).random((30, 4)).astype(np.float32), np.arange(30) % 3
    good = {"x": x, "y": y}

    def save(name: str, **changes: Any) -> None:
        np.savez(f"{name}.npz", **{k: v for k, v in (good | changes).items() if v is not None})

    save("good")
    save("pixels", x=x * 255)
    save("normalised", x=x * 4 - 2)
    save("nan", x=np.where(np.arange(30)[:, None] == 4, np.nan, x))
    save("tokens", x=(x * 1000).astype(np.int64))
    save("text", x=np.array([["a"] * 4] * 30))
    save("objects", x=np.array([[None] * 4] * 30))
    save("empty", x=x[:0], y=y[:0])
    save("scalar", x=np.float32(1))
    save("count", y=y[:29])
    save("onehot", y=np.eye(3, dtype=int)[y])
    save("floats", y=y.astype(float))
    save("names", y=np.array(["cat", "dog", "eel"])[y])
    save("from1", y=y + 1)
    save("large", y=y + 5)
    save("sparse", y=y + 10**9)
    save("unlabelled", y=np.where(y == 0, -1, y))
    save("no-y", y=None)
    save("few-names", classes=np.array(["cat"]))
    save("bad-domain", domain=np.array([1.0, 0.0]))
    save("channels-last", x=np.random.default_rng(0).random((30, 4, 4, 3)))
    np.savez("train-only.npz", x_train=x, y_train=y)
    np.save("array.npy", x)
    Path("cut.npz").write_bytes(Path("good.npz").read_bytes()[:300])
    Path("page.npz").write_text("<!DOCTYPE html>")
    Path("lfs.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    pq.write_table(pa.table({"x": [[0.5] * 4] * 30}), "unlabelled.parquet")
    pq.write_table(pa.table({"x": [[0.5] * 4] * 29 + [[0.5]], "label": y}), "ragged.parquet")
    pq.write_table(pa.table({"text": ["a"] * 30, "label": y}), "text.parquet")
    Path("torn.arrow").write_bytes(b"ARROW1\0\0nonsense")
    Path("ragged.csv").write_text("1,2,3,4,0\n1,2\n")
    Path("words.csv").write_text("a,b,label\n1,x,0\n")
    Path("data.pt").write_bytes(b"\x80\x02.")
    Path("data.h5").write_bytes(b"\x89HDF")
    Path("nothing").mkdir()
    image_folder(Path("pets"), pixels(6, 4, 4), np.arange(6) % 3, ["cat", "dog", "eel"])
    image_folder(Path("sizes"), pixels(6, 4, 4), np.arange(6) % 3, ["cat", "dog", "eel"])
    Path("sizes/dog/001.png").write_bytes(picture(pixels(5, 4)))
    image_folder(Path("damaged"), pixels(6, 4, 4), np.arange(6) % 3, ["cat", "dog", "eel"])
    Path("damaged/dog/001.png").write_bytes(b"")
    Path("loose").mkdir()
    Path("loose/a.png").write_bytes(picture(pixels(4, 4)))
    idx_files(Path("half"), "test", pixels(6, 4, 4), np.arange(6))
    Path("half/test-labels-idx1-ubyte").unlink()
    Path("cifar-10-batches-py").mkdir()
    Path("cifar-10-batches-py/data_batch_1").write_bytes(b"\x80\x02.")
    Path("twice.txt").write_text("1\n1\n")
    Path("outside.txt").write_text("30\n")
    Path("words.txt").write_text("one\n")
    Path("rows.json").write_text("[2, 0, 1]")
    Path("rows.npy").write_bytes(b"nonsense")
    return tmp_path


GRID = ("--eps-x", "0,0.1", "--eps-w", "0", "--workers", 1, "--quiet", "--out", "out")


def of(data: str, *more: Any, model: str = "flat") -> tuple[Any, ...]:
    return ("evaluate", f"m.py:{model}", "--data", data, *GRID, *more)


BAD = {
    "0-255 pixels": (of("pixels.npz"), "divide by 255"),
    "normalised": (of("normalised.npz"), "ns.Normalized(model, mean, std)"),
    "normalised, in a domain that is too small": (of("normalised.npz", "--domain=-1,1"), "outside the domain"),
    "nan": (of("nan.npz"), "first in row 4"),
    "token ids": (of("tokens.npz"), "token ids"),
    "text": (of("text.npz"), "expected floats"),
    "objects": (of("objects.npz"), "Object arrays cannot be loaded"),
    "no examples": (of("empty.npz"), "one or more examples"),
    "a number": (of("scalar.npz"), "shape ()"),
    "fewer labels": (of("count.npz"), "each of the 30 examples"),
    "one-hot": (of("onehot.npz"), "y.argmax(1)"),
    "labels in float": (of("floats.npz"), "y.astype(int)"),
    "labels in text": (of("names.npz"), "numpy.unique"),
    "labels from 1": (of("from1.npz"), "do they start at 1?"),
    "labels too large": (of("large.npz"), "labels span 5..7"),
    "labels too large by far": (of("sparse.npz"), "largest label is 1000000002"),
    "no label": (of("unlabelled.npz"), "'no label'"),
    "no labels": (of("no-y.npz"), "lacks y_test"),
    "too few names": (of("few-names.npz"), "1 classes"),
    "a domain upside down": (of("bad-domain.npz"), "domain is [1.0, 0.0]"),
    "channels last": (of("channels-last.npz", model="conv"), "x.permute(0, 3, 1, 2)"),
    "another shape": (of("good.npz", model="wide"), "does not accept inputs of shape"),
    "float64 weights": (of("good.npz", model="double"), "its weights are torch.float64"),
    "one logit": (of("good.npz", model="one"), "K >= 2"),
    "two outputs": (of("good.npz", model="pair"), "returns a tuple"),
    "no test split": (of("train-only.npz"), "lacks x_test"),
    "no val split": (of("good.npz", "--split", "val"), "has no val split"),
    "npy": (of("array.npy"), "numpy.savez"),
    "npz cut": (of("cut.npz"), "cannot be read"),
    "a web page": (of("page.npz"), "cannot be read"),
    "a pointer of git-lfs": (of("lfs.parquet"), "cannot be read as parquet"),
    "parquet without labels": (of("unlabelled.parquet"), "expected one of labels"),
    "parquet of ragged lists": (of("ragged.parquet"), "row 29"),
    "parquet of text": (of("text.parquet"), "embeddings"),
    "arrow torn": (of("torn.arrow"), "cannot be read as arrow"),
    "csv ragged": (of("ragged.csv"), "row 2 has 2 cells"),
    "csv of words": (of("words.csv"), "'x', which is no number"),
    "a pickle": (of("data.pt"), "never opened"),
    "hdf5": (of("data.h5"), "no kind that is read here"),
    "a folder of nothing": (of("nothing"), "empty folder"),
    "no such folder": (of("nowhere/data"), "does not exist"),
    "no such name": (of("mnsit"), "did you mean 'mnist'?"),
    "images of two sizes": (of("sizes", model="wide"), "001.png is 5 x 4 L"),
    "an image damaged": (of("damaged", model="wide"), "001.png is missing or damaged"),
    "images without classes": (of("loose", model="wide"), "without classes"),
    "half a pair of IDX": (of("half", model="wide"), "lacks test-labels-idx1-ubyte"),
    "pickles of CIFAR-10": (of("cifar-10-batches-py"), "data_batch_1"),
    "hub without an owner": (of("hf:mnist"), "hf:owner/name"),
    "row twice": (of("good.npz", "--indices", "twice.txt"), "1 more than once"),
    "row outside": (of("good.npz", "--indices", "outside.txt"), "0..29"),
    "rows of words": (of("good.npz", "--indices", "words.txt"), "words.txt cannot be read"),
    "rows of nonsense": (of("good.npz", "--indices", "rows.npy"), "rows.npy cannot be read"),
    "rows missing": (of("good.npz", "--indices", "nowhere.txt"), "nowhere.txt"),
    "rows a folder": (of("good.npz", "--indices", "nothing"), "is not a file"),
    "domain upside down": (of("good.npz", "--domain=1,-1"), "lowest < highest"),
    "domain of three": (of("good.npz", "--domain=0,1,2"), "domain"),
    "domain infinite": (of("good.npz", "--domain=-inf,inf"), "domain"),
    "domain of words": (of("good.npz", "--domain", "all"), "domain"),
    "certify": (("certify", "m.py:flat", "--data", "pixels.npz", *GRID), "divide by 255"),
    "train": (("train", "--data", "normalised.npz", "--quiet", "--out", "out"), "normalised.npz"),
}  # fmt: skip


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_line_and_leaves_nothing_behind(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv, quoted = BAD[case]
    before = listing(here)
    assert main([str(a) for a in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert quoted in err
    assert {n: b for n, b in listing(here).items() if "__pycache__" not in n} == before


def results_of(argv: tuple[Any, ...]) -> dict[str, Any]:
    assert main([str(a) for a in argv]) == 0
    return json.loads(Path("out/results.json").read_text())


def test_class_names_reach_the_records(here: Path) -> None:
    found = results_of(of("pets", model="wide"))
    assert found["data"]["classes"] == ["cat", "dog", "eel"]
    assert found["config"]["domain"] == [0.0, 1.0]


@pytest.mark.parametrize("domain, kept", [("none", "none"), ("-3,3", [-3.0, 3.0])])
def test_inputs_with_a_domain_of_their_own(here: Path, domain: str, kept: Any) -> None:
    found = results_of(of("normalised.npz", f"--domain={domain}"))
    assert found["config"]["domain"] == kept
    surface = found["models"]["m"]["surfaces"][0]
    assert surface["about"]["domain"] == (None if kept == "none" else kept)


def test_the_effective_settings_give_the_same_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The domain that the data set said is written out, and read back."""
    first = results_of(of("good.npz"))
    assert main(["evaluate", "--config", "out/config.yaml", "--workers", "1", "--quiet", "--out", "out"]) == 0
    assert json.loads(Path("out/results.json").read_text())["models"] == first["models"]


def test_indices_are_recorded(here: Path) -> None:
    found = results_of(of("good.npz", "--indices", "rows.json"))
    assert found["data"]["n"] == 3
    assert found["config"]["indices"] == "rows.json"
    assert found["data"]["indices"] == {"file": "rows.json", "sha256": hashlib.sha256(b"[2, 0, 1]").hexdigest()}
    split = load("good.npz").test
    assert found["data"]["sha256"] == Split(split.x[[2, 0, 1]], split.y[[2, 0, 1]]).sha256()


def test_doubts_are_shown_once_and_kept(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="nonsingular"):
        found = results_of(of("good.npz", model="softmax"))
    assert sum("probabilities" in record.message for record in caplog.records) == 1
    assert any("probabilities" in doubt for doubt in found["data"]["warnings"])


def test_sequences(tmp_path: Path) -> None:
    """(N, T, d) embeddings without a domain, through the library."""
    np.savez(tmp_path / "s.npz", x=numbers(N, 5, 4), y=np.arange(N) % 3, domain=[])
    d = load(str(tmp_path / "s.npz"))
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3)).eval()
    surface = ns.evaluate(model, d.test, eps_x=[0.0, 0.5], eps_w=[0.0], domain=d.domain)
    clean = (model(d.test.x).argmax(1) == d.test.y).double().mean().item()
    assert surface.accuracy[0, 0] == pytest.approx(clean)
    assert surface.accuracy[0, 1] <= clean


def test_paths_may_be_odd() -> None:
    for name in ("x" * 5000, "a\0b", "./" + "y" * 300, os.sep):
        with pytest.raises(InvalidInput):
            load(name)
