"""test_data.py - every reader against files that the test writes itself, and every kind of damage to them."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import logging
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nonsingular.data import datasets as data
from nonsingular.data.datasets import Dataset, Split, load
from nonsingular.errors import InvalidInput

RAW = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
N, M = 40, 20  # images to train and to test, in the small data sets below


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test touches the user's cache."""
    monkeypatch.setenv("NONSINGULAR_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def labels(n: int) -> np.ndarray:
    return np.arange(n) % 10


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def check_splits(d: Dataset, sizes: tuple[int, int, int]) -> None:
    assert tuple(map(len, (d.train, d.val, d.test))) == sizes
    for split in (d.train, d.val, d.test):
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
        assert 0 <= split.x.min() <= split.x.max() <= 1


def rows(*splits: Split) -> list[tuple[bytes, int]]:
    """Every example as something to compare and sort."""
    return sorted((x.numpy().tobytes(), int(y)) for split in splits for x, y in zip(split.x, split.y, strict=True))


# ---- digits, splits --------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    d = load("digits")
    check_splits(d, (1097, 200, 500))  # sums to 1,797
    whole = Split(torch.tensor(theirs.images[:, None] / 16, dtype=torch.float32), torch.tensor(theirs.target))
    assert rows(d.train, d.val, d.test) == rows(whole)  # each example once: so the splits are disjoint, too
    assert d.classes == tuple(map(str, theirs.target_names))


def test_digits_splits_are_stratified() -> None:
    d = load("digits")
    total = sum(split.y.bincount() for split in (d.train, d.val, d.test))
    assert ((d.test.y.bincount() - total * 500 / 1797).abs() < 1).all()
    rest = total - d.test.y.bincount()
    assert ((d.val.y.bincount() - rest * 200 / 1297).abs() < 1).all()


def test_digits_splits_never_change() -> None:
    """Numbers are compared between runs and versions: these hashes may not change."""
    d = load("digits")
    assert d.train.sha256()[:16] == "be684b1f7ae58bd5"
    assert d.val.sha256()[:16] == "288012b8d59e45bb"
    assert d.test.sha256()[:16] == "b62a2569c7663eee"


def test_hold_out_by_hand() -> None:
    # 6, 3 and 1 examples, 5 set aside: shares 3, 1.5, 0.5 -> floors 3, 1, 0, and the first of the two equal remainders
    y = np.array([0] * 6 + [1] * 3 + [2])
    (rest, rest_y), (aside, aside_y) = data._hold_out((np.arange(10), y), 5)
    assert np.bincount(aside_y).tolist() == [3, 2]
    assert sorted([*rest, *aside]) == list(range(10))
    assert (y[rest] == rest_y).all()
    assert (y[aside] == aside_y).all()


def test_take() -> None:
    split = Split(torch.arange(100.0)[:, None], torch.arange(100))
    few, more = split.take(10, seed=1), split.take(50, seed=1)
    assert len(few) == 10
    assert few.y.tolist() == sorted(set(few.y.tolist())) == few.x[:, 0].tolist()  # no repeats, in order, x with its y
    assert set(few.y.tolist()) < set(more.y.tolist())
    assert torch.equal(few.y, split.take(10, seed=1).y)
    assert not torch.equal(few.y, split.take(10, seed=2).y)
    assert split.take(None) is split.take(100) is split.take(101) is split


@pytest.mark.parametrize("limit", [0, -1])
def test_take_refuses(limit: int) -> None:
    with pytest.raises(InvalidInput, match=f"limit is {limit}; give 1 or more"):
        load("digits").test.take(limit)
    with pytest.raises(InvalidInput, match="seed is -1"):
        load("digits").test.take(1, seed=-1)


def test_sha256_sees_everything() -> None:
    x, y = torch.arange(4.0).reshape(2, 2), torch.tensor([0, 1])
    hashes = [
        Split(x, y).sha256(), Split(x.flip(0), y).sha256(), Split(x, y.flip(0)).sha256(), Split(x[:, None], y).sha256(),
        Split(x.double(), y).sha256(), Split(x.T, y).sha256(),
    ]  # fmt: skip
    assert len(set(hashes)) == len(hashes)
    assert Split(x.T.contiguous(), y).sha256() == hashes[-1]  # the values count, not how they lie in memory


@pytest.mark.parametrize(
    "name, guess",
    [("MNIST", "'mnist'"), ("fashion_mnist", "'fashion-mnist'"), ("cifar-10", "'cifar10'"), ("mnist.v2", "'mnist'")],
)
def test_unknown_name(name: str, guess: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"did you mean {guess}.*digits, mnist, fashion-mnist, cifar10, hf:owner/name, or .*npz"
    ):
        load(name)
    with pytest.raises(InvalidInput, match=r"no data set 'zebra'\. Choose one of digits"):
        load("zebra")


# ---- IDX -------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.astype(np.uint8).tobytes()


def idx_files() -> dict[str, bytes]:
    return dict(zip(RAW, map(idx, (images(N, 28, 28), labels(N), images(M, 28, 28), labels(M))), strict=True))


def small(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    monkeypatch.setitem(data.SOURCES, name, replace(data.SOURCES[name], sizes=(N, M), held_out=10, **changes))


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A data set of 60 images that is MNIST as far as `load` can tell; its files by name."""
    files = idx_files()
    small(
        monkeypatch, "mnist", url="http://127.0.0.1:9/",
        files={f"{name}.gz": (md5(gzip.compress(raw, mtime=0)), md5(raw)) for name, raw in files.items()},
    )  # fmt: skip
    return files


def write(folder: Path, files: dict[str, bytes], packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw, mtime=0) if packed else raw)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
def test_idx_round_trip(small_mnist: dict[str, bytes], tmp_path: Path, place: str, packed: bool) -> None:
    write(tmp_path / place, small_mnist, packed)
    d = load("mnist", tmp_path)
    check_splits(d, (30, 10, 20))
    assert torch.equal(d.test.x, torch.tensor(images(M, 1, 28, 28)) / 255)
    assert d.test.y.tolist() == labels(M).tolist()
    assert rows(d.train, d.val) == rows(Split(torch.tensor(images(N, 1, 28, 28)) / 255, torch.tensor(labels(N))))
    assert d.val.y.bincount().tolist() == [1] * 10


def test_fashion_mnist_is_known_by_form_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(monkeypatch, "fashion-mnist")
    write(tmp_path / "FashionMNIST" / "raw", idx_files())
    check_splits(load("fashion-mnist", str(tmp_path)), (30, 10, 20))


def test_mnist_is_not_taken_for_fashion_mnist(
    monkeypatch: pytest.MonkeyPatch, small_mnist: dict[str, bytes], tmp_path: Path
) -> None:
    small(monkeypatch, "fashion-mnist")
    write(tmp_path / "raw", small_mnist)
    with pytest.raises(InvalidInput, match="is a file of MNIST, not of Fashion-MNIST"):
        load("fashion-mnist", tmp_path)


DAMAGE = {
    "truncated gz": ("train-images-idx3-ubyte.gz", lambda b: b[: len(b) // 2], "truncated or damaged"),
    "not a gz": ("train-images-idx3-ubyte.gz", lambda b: b"<html>404</html>", "truncated or damaged"),
    "wrong magic": (
        "train-images-idx3-ubyte",
        lambda b: b"\x00\x00\x0d\x03" + b[4:],
        r"bytes \[00 00 0d 03\], expected \[00 00 08 03\]",
    ),
    "labels as images": ("train-images-idx3-ubyte", lambda b: idx(labels(N)), r"expected \[00 00 08 03\]"),
    "empty": ("t10k-labels-idx1-ubyte", lambda b: b"", r"starts with bytes \[\]"),
    "header only in part": ("t10k-images-idx3-ubyte", lambda b: b[:6], "is 6 bytes long unpacked, expected 15696"),
    "too short": ("t10k-images-idx3-ubyte", lambda b: b[:-1], "is 15695 bytes long unpacked, expected 15696"),
    "too long": ("t10k-images-idx3-ubyte", lambda b: b + b"!", "is 15697 bytes long unpacked, expected 15696"),
    "a label too few": (
        "train-labels-idx1-ubyte",
        lambda b: idx(labels(N - 1)),
        r"says that it holds \(39,\), but .* holds \(40,\)",
    ),
    "wrong image size": (
        "train-images-idx3-ubyte",
        lambda b: idx(images(N, 32, 32)),
        r"holds \(40, 32, 32\), but .* \(40, 28, 28\)",
    ),
    "one wrong byte": ("train-images-idx3-ubyte", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "is corrupt, or not MNIST: md5"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_idx_damage(small_mnist: dict[str, bytes], tmp_path: Path, case: str) -> None:
    name, damage, message = DAMAGE[case]
    write(tmp_path, small_mnist, packed=name.endswith(".gz"))
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    served = name.removesuffix(".gz") + ".gz"
    with pytest.raises(InvalidInput, match=rf"{name} .*{message}.*; delete it and get it again from http://127.0.0.1:9/{served}"):
        load("mnist", tmp_path)


def test_idx_label_out_of_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(monkeypatch, "fashion-mnist")
    write(tmp_path, idx_files() | {"t10k-labels-idx1-ubyte": idx(np.where(np.arange(M) == 7, 10, 0))})
    with pytest.raises(
        InvalidInput, match=r"t10k-labels.*: row 7 \(the first is 0\) has label 10; the labels of Fashion-MNIST are 0..9"
    ):
        load("fashion-mnist", tmp_path)


def test_data_dir_without_the_files(small_mnist: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"'.*nowhere' does not exist; give a folder with train-images-idx3-ubyte.* or .*parquet"
    ):
        load("mnist", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="is a file, not a folder"):
        load("mnist", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InvalidInput, match=r"empty' does not hold MNIST; looked for .* the folder itself or its MNIST/raw, MNIST, raw, or"
    ):
        load("mnist", tmp_path / "empty")
    with pytest.raises(InvalidInput, match=r"looked for cifar-10-binary.tar.gz in the folder itself, or .*holds pickles"):
        load("cifar10", tmp_path / "empty")
    del small_mnist[RAW[3]]
    write(tmp_path / "raw", small_mnist)
    with pytest.raises(
        InvalidInput, match=r"does not hold MNIST \(found only [^)]*train-images[^)]*t10k-images[^)]*\); looked for"
    ):
        load("mnist", tmp_path)


# ---- the cache and downloads -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_mnist: dict[str, bytes]) -> Iterator[Path]:
    """A folder that is served on this machine as the address of MNIST."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    folder = tmp_path / "served"
    write(folder, small_mnist)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setitem(data.SOURCES, "mnist", replace(data.SOURCES["mnist"], url=f"http://127.0.0.1:{http.server_port}/"))
        yield folder
        http.shutdown()
        thread.join()


def test_download_once(server: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nonsingular")
    check_splits(load("mnist"), (30, 10, 20))
    assert sorted(p.name for p in (cache / "MNIST" / "raw").iterdir()) == sorted(f"{name}.gz" for name in RAW)
    assert [record.name for record in caplog.records] == ["nonsingular"] * 4
    assert "downloading http://127.0.0.1" in caplog.text
    for path in server.iterdir():
        path.unlink()
    check_splits(load("mnist"), (30, 10, 20))  # now from the cache
    assert len(caplog.records) == 4


def test_download_only_what_is_missing(server: Path, cache: Path, small_mnist: dict[str, bytes]) -> None:
    write(cache / "MNIST" / "raw", {RAW[0]: small_mnist[RAW[0]]}, packed=False)
    (server / f"{RAW[0]}.gz").unlink()
    check_splits(load("mnist"), (30, 10, 20))


def test_download_of_a_bad_file(server: Path, cache: Path) -> None:
    (server / f"{RAW[1]}.gz").write_bytes(b"a login page")
    with pytest.raises(InvalidInput, match=rf"/{RAW[1]}.gz could not be downloaded.*hash.*--data-dir.*train-images-idx3-ubyte"):
        load("mnist")
    assert [p.name for p in (cache / "MNIST" / "raw").iterdir()] == [f"{RAW[0]}.gz"]  # the bad file is not kept


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pooch leaves the connection of a refused request to the collector
def test_download_not_found(server: Path) -> None:
    (server / f"{RAW[0]}.gz").unlink()
    with pytest.raises(InvalidInput, match=r"could not be downloaded.*404.*--data-dir"):
        load("mnist")
    gc.collect()  # while the warning is off


def test_download_without_a_server(small_mnist: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match=r"http://127.0.0.1:9/train-images.*refused.*--data-dir.*MNIST/raw.*parquet.*digits"):
        load("mnist")


@pytest.mark.parametrize("error", [OSError("no network"), TimeoutError("no network"), ValueError("no network")])
def test_download_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pooch = pytest.importorskip("pooch")

    def fail(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(pooch, "retrieve", fail)
    level = pooch.get_logger().level
    with pytest.raises(
        InvalidInput, match=r"cifar-10-binary.tar.gz could not be downloaded to .*\(no network\); get CIFAR-10 another way"
    ):
        load("cifar10")
    assert pooch.get_logger().level == level


def test_a_damaged_cache_is_told_not_replaced(small_mnist: dict[str, bytes], cache: Path) -> None:
    write(cache / "MNIST" / "raw", small_mnist | {RAW[1]: idx(labels(N)[::-1])})
    with pytest.raises(InvalidInput, match="is corrupt, or not MNIST"):
        load("mnist")


# ---- CIFAR-10's archive ----------------------------------------------------------------------------------------------


def test_cifar_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x, y = images(N + M, 3, 32, 32), labels(N + M)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            part = slice(8 * i, 8 * i + 8) if i < 5 else slice(N, None)
            content = b"".join(bytes([label]) + image.tobytes() for image, label in zip(x[part], y[part], strict=True))
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(
        InvalidInput, match=r"is corrupt, or not CIFAR-10: its md5 is .*; delete it and get it again from https://www.cs"
    ):
        load("cifar10", tmp_path)
    small(monkeypatch, "cifar10", files={"cifar-10-binary.tar.gz": (md5(buffer.getvalue()), None)})
    d = load("cifar10", tmp_path)
    check_splits(d, (30, 10, 20))
    assert torch.equal(d.test.x, torch.tensor(x[N:]) / 255)
    assert torch.equal(d.test.y, torch.tensor(y[N:]))
    assert rows(d.train, d.val) == rows(Split(torch.tensor(x[:N]) / 255, torch.tensor(y[:N])))


# ---- parquet ---------------------------------------------------------------------------------------------------------


def picture(array: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(array).save(buffer, form)
    return buffer.getvalue()


def write_parquet(path: Path, cells: list[Any], y: Any, image: str = "img", label: str = "label") -> None:
    arrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({image: cells, label: y}), path)


def cells(x: np.ndarray) -> list[Any]:
    """Hugging Face's cells out of (N, C, H, W) images."""
    return [{"bytes": picture(i[0] if len(i) == 1 else i.transpose(1, 2, 0)), "path": None} for i in x]


@pytest.mark.parametrize(
    "name, shape, image, place",
    [
        ("cifar10", (3, 32, 32), "img", "plain_text"),
        ("cifar10", (3, 32, 32), "image", "."),
        ("mnist", (1, 28, 28), "image", "mnist"),
    ],
)
def test_parquet_round_trip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, shape: tuple[int, ...], image: str, place: str
) -> None:
    small(monkeypatch, name)
    x, y = images(N, *shape), labels(N)
    for i in range(2):  # two shards, which must stay in order
        half = slice(i * N // 2, (i + 1) * N // 2)
        write_parquet(tmp_path / place / f"train-0000{i}-of-00002.parquet", cells(x[half]), y[half], image)
    write_parquet(tmp_path / place / "test-00000-of-00001.parquet", cells(images(M, *shape)), labels(M), image)
    d = load(name, tmp_path)
    check_splits(d, (30, 10, 20))
    assert torch.equal(d.test.x, torch.tensor(images(M, *shape)) / 255)
    assert rows(d.train, d.val) == rows(Split(torch.tensor(x) / 255, torch.tensor(y)))
    (tmp_path / place / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(InvalidInput, match="hold 20 images, expected 40; is a shard missing"):
        load(name, tmp_path)


def test_parquet_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(monkeypatch, "cifar10")
    good, y = cells(images(N, 3, 32, 32)), labels(N)
    train, test = tmp_path / "train-00000-of-00001.parquet", tmp_path / "test-00000-of-00001.parquet"
    write_parquet(test, good[:M], y[:M])

    def refused(message: str) -> None:
        with pytest.raises(InvalidInput, match=rf"train-00000-of-00001.parquet.*{message}"):
            load("cifar10", tmp_path)

    def with_third(blob: bytes | None) -> list[Any]:
        return [*good[:3], {"bytes": blob, "path": "cat.png"}, *good[4:]]

    write_parquet(train, good, y)
    whole = train.read_bytes()
    train.write_bytes(whole[: len(whole) // 2])
    refused("cannot be read as parquet, it is truncated or damaged")
    train.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused("cannot be read as parquet")
    write_parquet(train, good, y, image="picture")
    refused(r"has columns \['picture', 'label'\]; expected 'img' or 'image'")
    write_parquet(train, good, y, label="fine_label")
    refused(r"has columns \['img', 'fine_label'\]")
    write_parquet(train, good, np.where(np.arange(N) == 5, 10, y))
    refused("row 5 .*has label 10; the labels of CIFAR-10 are 0..9")
    write_parquet(train, good, np.where(np.arange(N) == 5, -1, y))
    refused("row 5 .*has label -1")
    write_parquet(train, good, [None, *map(int, y[1:])])
    refused("column 'label' is int64, with 1 empty cells; expected whole numbers")
    write_parquet(train, good, [str(label) for label in y])
    refused("column 'label' is string")
    for blob in (None, b"", b"no picture", good[3]["bytes"][:200], picture(images(1, 32, 32, 3)[0], "BMP")):
        write_parquet(train, with_third(blob), y)
        refused(r"the image in row 3 \(the first is 0\) is missing or damaged .*expected 32 x 32 RGB; .*images are PNG or JPEG")
    write_parquet(train, with_third(picture(images(1, 28, 32, 3)[0])), y)
    refused("row 3 .* is 28 x 32 RGB; expected 32 x 32 RGB")
    write_parquet(train, with_third(picture(images(1, 32, 32)[0])), y)
    refused("row 3 .* is 32 x 32 L; expected 32 x 32 RGB")
    write_parquet(train, ["a path"] * N, y)
    refused("row 0 .* is missing or damaged")


def test_parquet_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # makes `import pyarrow` fail
    for name in ("train-0.parquet", "test-0.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match=r"needs pyarrow and pillow; run: pip install 'nonsingular\[parquet\]'"):
        load("cifar10", tmp_path)


# ---- the real files --------------------------------------------------------------------------------------------------


def test_real_mnist(shared_data: Path) -> None:
    d = load("mnist", shared_data)
    check_splits(d, (55_000, 5_000, 10_000))
    assert d.test.x.shape == (10_000, 1, 28, 28)
    assert (d.test.x.min(), d.test.x.max()) == (0, 1)
    assert (d.train.y.bincount() + d.val.y.bincount()).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert d.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert d.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.slow
def test_real_cifar10(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("PIL")
    d = load("cifar10", shared_data)
    check_splits(d, (45_000, 5_000, 10_000))
    assert d.test.x.shape == (10_000, 3, 32, 32)
    assert d.train.y.bincount().tolist() == [4500] * 10
    assert d.val.y.bincount().tolist() == [500] * 10
    assert d.test.y.bincount().tolist() == [1000] * 10
    assert d.test.y[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # its README: rows cycle through the classes


# ---- your own .npz file ----------------------------------------------------------------------------------------------


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    whole = {"x_train": rng.random((N, 5)), "y_train": np.arange(N) % 4, "x_test": rng.random((M, 5)), "y_test": np.arange(M) % 4}
    return {name: a for name, a in (whole | changes).items() if a is not None}


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    d = load(str(path))
    check_splits(d, (36, 4, 20))
    assert (d.name, d.classes, d.domain) == ("mine", ("0", "1", "2", "3"), (0.0, 1.0))
    assert d.val.y.bincount().tolist() == [1, 1, 1, 1]
    assert rows(d.train, d.val) == rows(Split(torch.tensor(arrays()["x_train"]).float(), torch.tensor(arrays()["y_train"])))
    assert load(str(path)).val.sha256() == d.val.sha256()


def test_npz_with_all_there_is(tmp_path: Path) -> None:
    x = images(3, 1, 4, 4)
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])
    np.savez(
        tmp_path / "a.npz",
        **arrays(
            x_train=x, y_train=np.uint8([0, 1, 3]), x_test=x, y_test=[1, 1, 1], x_val=x / 255, y_val=[0, 1, 2], classes=names
        ),
    )
    d = load(str(tmp_path / "a.npz"))
    check_splits(d, (3, 3, 3))
    assert torch.equal(d.test.x, torch.tensor(x) / 255)
    assert torch.allclose(d.val.x, d.test.x)
    assert d.classes == ("cat", "dog", "eel", "fox", "gnu")


WRONG = {
    "lacking": ({"y_test": None}, r"lacks y_test; it holds \['x_test', 'x_train', 'y_train'\]. Expected x_test"),
    "half a val": ({"x_val": np.zeros((2, 5))}, "lacks y_val"),
    "flat": ({"x_train": np.zeros(N)}, r"x_train is float64 of shape \(40,\); expected \(N, ...\)"),
    "empty": (
        {"x_test": np.zeros((0, 5)), "y_test": np.zeros(0, int)},
        r"x_test is float64 of shape \(0, 5\); expected \(N, ...\)",
    ),
    "int64": (
        {"x_test": np.zeros((M, 5), int)},
        r"x_test is int64 of shape \(20, 5\); an ℓ∞ radius has no meaning for whole numbers.*embeddings",
    ),
    "0-255": (
        {"x_test": np.full((M, 5), 255.0)},
        r"test split: inputs span \[255, 255\], outside the domain \[0.0, 1.0\] \(0-255 pixels\? divide by 255\)",
    ),
    "normalised": (
        {"x_test": np.linspace(-1, 1, 5 * M).reshape(M, 5)},
        r"span \[-1, 1\].*normalisation belongs to the model: ns.Normalized",
    ),
    "nan": ({"x_test": np.full((M, 5), np.nan)}, "NaN.* in 20 rows, first in row 0"),
    "huge": ({"x_test": np.full((M, 5), 1e300)}, "too large values in 20 rows"),
    "other shape": (
        {"x_test": np.zeros((M, 6))},
        r"inputs of train have shape \(40, 5\) and of test \(20, 6\); expected the same, except for N",
    ),
    "float labels": ({"y_test": np.zeros(M)}, r"y_test is float64 of shape \(20,\); expected a whole number for each of the 20"),
    "one-hot": ({"y_test": np.eye(M, dtype=int)}, r"y_test is int64 of shape \(20, 20\).*y.argmax\(1\)"),
    "count": ({"y_test": np.zeros(M - 1, int)}, r"y_test is int64 of shape \(19,\).*each of the 20 examples.*shape \(20,\)"),
    "negative": ({"y_test": np.full(M, -1)}, "holds -1; class indices start at 0"),
    "too large": ({"y_test": np.full(M, 2**64 - 1, np.uint64)}, "class indices start at 0"),
    "sparse labels": ({"y_test": np.full(M, 10**9)}, "the largest label is 1000000000, of 60 examples"),
    "few classes": ({"classes": np.array(["cat", "dog"])}, "there are 2 classes, and labels up to 3"),
    "one example": ({"x_train": np.zeros((1, 5)), "y_train": [0]}, "there is one example to train on"),
    "objects": (
        {"x_test": np.array([[None]])},
        r"array x_test cannot be read \(Object arrays cannot be loaded.*from arrays of numbers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_npz_refused(tmp_path: Path, case: str) -> None:
    changes, message = WRONG[case]
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(InvalidInput, match=rf"a.npz.*{message}"):
        load(str(tmp_path / "a.npz"))


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InvalidInput, match=r"a.npz' does not exist; give the path of an .npz file"):
        load(str(path))
    np.savez(path, **arrays())
    whole = path.read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for content in (b"", b"text", whole[:-100], whole[:200], buffer.getvalue()):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"a.npz cannot be read \(.*\); write the file with numpy.savez"):
            load(str(path))
