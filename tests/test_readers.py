"""test_readers.py - files that the test writes itself, read back; and every likely mistake in them, called by its name."""

from __future__ import annotations

import gzip
import io
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nonsingular.data.datasets import Split, load
from nonsingular.errors import InvalidInput

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
    d = load(tmp_path / "a.npz")
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
    with pytest.raises(InvalidInput, match="holds other classes than the other splits: b, c"):
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


def test_the_real_mnist_by_its_folder_is_mnist_by_name(shared_data: Path) -> None:
    by_name, by_folder = load("mnist", shared_data), load(str(shared_data / "MNIST"))
    assert by_folder.test.sha256() == by_name.test.sha256()
    assert tuple(map(len, (by_folder.train, by_folder.val))) == (55_000, 5_000)


@pytest.mark.slow
def test_the_real_cifar10_by_its_folder_is_cifar10_by_name(shared_data: Path) -> None:
    by_name, by_folder = load("cifar10", shared_data), load(str(shared_data / "cifar10-jpeg"))
    assert by_folder.test.sha256() == by_name.test.sha256()
    assert by_folder.classes == by_name.classes


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
    with pytest.raises(InvalidInput, match="is 528 bytes long unpacked; its header states"):
        load(str(path))
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    with pytest.raises(InvalidInput, match=r"\[00 00 0d 03\].*not an IDX file of unsigned bytes in 3 dimensions"):
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
    with pytest.raises(InvalidInput, match="holds 1 of the 2 files that belong with data-00000-of-00002"):
        load(str(tmp_path))


GOOD = {"x": [[0.5, 0.5]] * N, "label": [0, 1] * (N // 2)}
PARQUET = {
    "no labels": ({"x": GOOD["x"]}, r"has columns \['x'\]; expected a column of labels"),
    "empty": ({"x": [], "label": []}, "holds no rows"),
    "labels missing": ({**GOOD, "label": [None, *GOOD["label"][1:]]}, "with 1 empty cells; expected whole numbers or names"),
    "labels in float": ({**GOOD, "label": [0.5] * N}, "column 'label' is double"),
    "labels negative": ({**GOOD, "label": [-1] * N}, "holds -1; class indices start at 0.*no label"),
    "labels in lists": ({**GOOD, "label": [[0, 1]] * N}, "column 'label' is list"),
    "ragged": ({**GOOD, "x": [[0.5, 0.5]] * 5 + [[0.5]] + [[0.5, 0.5]] * (N - 6)}, "different lengths: .*number in row 5"),
    "lists missing": ({**GOOD, "x": [None] + [[0.5, 0.5]] * (N - 1)}, "lists of different lengths"),
    "empty lists": ({**GOOD, "x": [[]] * N}, "empty lists, or lists of different lengths|expected numbers"),
    "values missing": ({**GOOD, "x": [[None, 0.5]] + [[0.5, 0.5]] * (N - 1)}, "with 1 empty values"),
    "token ids": ({**GOOD, "x": [[5, 6]] * N}, "token ids"),
    "text": ({**GOOD, "x": ["hello"] * N}, "Text has no ℓ∞ radius: give its embeddings"),
    "nan": ({**GOOD, "x": [[float("nan"), 0.5]] + [[0.5, 0.5]] * (N - 1)}, "NaN.* in 1 rows, first in row 0"),
    "two lists": ({**GOOD, "z": GOOD["x"]}, r"several columns of inputs \(x, z\)"),
    "labels twice": ({"a": [0.5] * N, "label": GOOD["label"], "target": GOOD["label"]}, "labels in 'label' and in 'target'"),
    "cells missing": ({"a": [None, *range(1, N)], "label": GOOD["label"]}, "column 'a' has 1 empty cells"),
    "paths": ({"image": [{"bytes": None, "path": "a.png"}] * N, "label": GOOD["label"]}, "row 0 .*missing or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARQUET)
def test_parquet_refused(tmp_path: Path, case: str) -> None:
    columns, message = PARQUET[case]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=rf"a\.parquet.*{message}"):
        load(str(tmp_path / "a.parquet"))


def test_columns_of_splits_in_another_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0], "label": [0, 1]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"label": [1], "b": [6.0], "a": [5.0]}), tmp_path / "test.parquet")
    assert load(str(tmp_path)).test.x.tolist() == [[5.0, 6.0]]
    pq.write_table(pa.table({"label": [1], "c": [6.0], "a": [5.0]}), tmp_path / "test.parquet")
    with pytest.raises(InvalidInput, match="different columns"):
        load(str(tmp_path))


def test_the_index_of_pandas_is_no_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0], "label": [0], "__index_level_0__": [7]}), tmp_path / "a.parquet")
    assert load(str(tmp_path / "a.parquet")).test.x.tolist() == [[1.0]]


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


def test_csv_columns_of_splits_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,label\n1,2,0\n3,4,1\n")
    (tmp_path / "test.csv").write_text("b,a,label\n1,2,0\n")
    with pytest.raises(InvalidInput, match="different columns, a, b, label and b, a, label"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "text, message",
    [("", "holds 0 rows"), ("1,2\n", "holds 1 rows"), ("1,0\n2\n", "row 2 has 1 cells"),
     ("a,y\nb,0\n", "'b', which is not a number"), ("1,0\n,1\n", "row 2 has an empty cell"), ("1,0\nnan,1\n", "NaN"),
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


def test_a_hub_that_does_not_answer_is_left_alone(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonsingular.data.readers.hub.SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(InvalidInput, match="timed out"):
            load("hf:me/mine")
    assert time.monotonic() - started < 5


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
     ("i.json", "[true]", "not a list of whole numbers"),
     ("i.json", "{", "cannot be read"), ("i.json", "[1e3]", "not a list of whole numbers"),
     ("i.json", str(2**70).join("[]"), "expected one or more whole"),
     ("i.npy", "x", "cannot be read"), ("i.csv", "1", "expected .npy"), ("nowhere.txt", None, "does not exist")],
)  # fmt: skip
def test_indices_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInput, match=message):
        Split(torch.zeros(10, 1), torch.zeros(10, dtype=torch.long)).pick(tmp_path / name)


def test_a_signalling_nan_is_refused_without_a_warning(tmp_path: Path) -> None:
    x = np.zeros((3, 2))
    x.view(np.int64)[1, 0] = 0x7FF0000000000001  # NaN, of the kind that casts complain of
    np.savez(tmp_path / "d.npz", x_test=x, y_test=np.zeros(3, np.int64))
    with pytest.raises(InvalidInput, match="first in row 1"):
        load(str(tmp_path / "d.npz"))
