"""test_bad_data.py - what Python users hand over, and every likely mistake in data: by the library, and by the command line."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
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
from nonsingular.cli.main import main
from nonsingular.data.datasets import Split, as_tensors, load
from nonsingular.errors import InvalidInput
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall
from test_readers import idx_files, image_folder, numbers, picture, pixels

Image = pytest.importorskip("PIL.Image")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
N = 12

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
    "backwards": lambda: (X.flip(0).numpy()[::-1], Y.numpy().astype(">u2")),
    "read-only": lambda: (np.frombuffer(X.numpy().tobytes(), np.float32).reshape(N, 4), Y),
    "shuffled, its own collate, of dictionaries": lambda: DataLoader(
        [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)],  # type: ignore[arg-type]
        batch_size=5,
        shuffle=True,
        collate_fn=lambda b: [torch.stack([e[k] for e in b]) for k in "xy"],
    ),
    "loader of whole batches": lambda: DataLoader([(X[:5], Y[:5]), (X[5:], Y[5:])], batch_size=None),  # type: ignore[arg-type]
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
    "text": (lambda: "digits", r"data is a str; .*ns\.load\('digits'\)\.test"),
    "none": (lambda: None, "data is a NoneType"),
    "three splits": (lambda: load("digits"), r"three splits \(digits\); give one of them, e.g. data.test"),
    "ragged pair": (lambda: ([[1.0], [1.0, 2.0]], [0, 1]), "x is a list of 2, not an array of numbers"),
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
    "own batches": (
        lambda: DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [5]]),
        "draws its examples by list",
    ),
    "augmentation": (lambda: Moving(X, Y), r"changes when it is read again: a random transform"),
    "augmentation in a loader": (lambda: DataLoader(Moving(X, Y)), r"changes when it is read again"),
    "loader of three": (lambda: DataLoader(TensorDataset(X, Y, Y)), r"a list of 3; expected batches \(x, y\)"),
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
    "no values": (lambda: linear(4, 3).to("meta"), U, V, r"is on the meta device and has no values"),
    "from 1": (lambda: linear(4, 3), U, V + 1, r"do they start at 1\? Give y - 1"),
    "too large": (lambda: linear(4, 3), U, V + 2, r"labels span 2\.\.4, but the model has 3 classes"),
    "one-hot": (lambda: linear(4, 3), U, torch.eye(3)[V], r"one-hot\? give y\.argmax\(1\)"),
    "column": (lambda: linear(4, 3), U, V[:, None], r"y\.squeeze\(1\)"),
    "labels in float": (lambda: linear(4, 3), U, V.float(), r"y\.long\(\)"),
    "labels in bool": (lambda: linear(4, 3), U, V > 0, r"y\.long\(\)"),
    "tuple": (lambda: Of(lambda z: (z, z)), U, V, "the model returns a tuple, not a tensor"),
    "one logit": (lambda: linear(4, 1), U, V, r"or one logit for two classes"),
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
    "one logit": (of("good.npz", model="one"), "K >= 2"),
    "two outputs": (of("good.npz", model="pair"), "returns a tuple"),
    "no test split": (of("train-only.npz"), "lacks x_test"),
    "no val split": (of("good.npz", "--split", "val"), "has no val split"),
    "npy": (of("array.npy"), "numpy.savez"),
    "npz cut": (of("cut.npz"), "cannot be read"),
    "a web page": (of("page.npz"), "cannot be read"),
    "a pointer of git-lfs": (of("lfs.parquet"), "cannot be read as parquet"),
    "parquet without labels": (of("unlabelled.parquet"), "expected a column of labels"),
    "parquet of ragged lists": (of("ragged.parquet"), "row 29"),
    "parquet of text": (of("text.parquet"), "embeddings"),
    "arrow torn": (of("torn.arrow"), "cannot be read as arrow"),
    "csv ragged": (of("ragged.csv"), "row 2 has 2 cells"),
    "csv of words": (of("words.csv"), "'x', which is not a number"),
    "a pickle": (of("data.pt"), "never opened"),
    "hdf5": (of("data.h5"), "has no format that is known here"),
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
    (model,) = found["models"].values()
    assert any("probabilities" in doubt for doubt in model["surfaces"][0]["about"]["doubts"])


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
