"""What a user calls a model: what loads gives the model's own outputs, and what cannot be used is named in one line."""

import contextlib
import json
import os
import pickle
import socket
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import nn

import nonsingular as ns
from nonsingular.cli.main import main
from nonsingular.models.architectures import mlp

SOURCE = """
import dataclasses
import sys
import torch
from torch import nn
import nonsingular as ns

@dataclasses.dataclass
class Sizes:
    hidden: int = 5

class Net(nn.Module):
    def __init__(self, hidden: int = Sizes().hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, hidden), nn.Linear(hidden, 10)
    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))

def make():
    torch.manual_seed(0)
    return Net()

def chatty():
    print("a word on stdout")
    return make()

def compiled():
    return make().double().float()

def normalised():
    return ns.Normalized(make(), 0.5, 0.25)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight, self.out = self.a.weight, nn.Linear(64, 10)
    def forward(self, x):
        return self.out(self.b(torch.relu(self.a(x.flatten(1)))))

def trains():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).train()

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def on_meta():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta"))

def of_width(width):
    return nn.Linear(width, 10)

class Wide(nn.Module):
    def __init__(self, width, depth):
        super().__init__()

def fails():
    return Net(hidden="many")

def leaves():
    sys.exit(3)

def a_dict():
    return make().state_dict()

def a_class():
    return Net

def a_pair():
    return make(), 3

whole = make()
number = 3
table = {"net": Net}
"""


def net():
    """The network of SOURCE."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10)).eval()


NAMES = {"1.weight": "fc1.weight", "1.bias": "fc1.bias", "3.weight": "fc2.weight", "3.bias": "fc2.bias"}
X = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def state(seed=5):
    """Weights for `Net`, other than its own."""
    g = torch.Generator().manual_seed(seed)
    return {NAMES[k]: torch.randn(v.shape, generator=g) for k, v in net().state_dict().items()}


def outputs(tensors, x=X):
    """The logits of Net with these weights, written out."""
    z = (x.flatten(1) @ tensors["fc1.weight"].T + tensors["fc1.bias"]).clamp(min=0)
    return z @ tensors["fc2.weight"].T + tensors["fc2.bias"]


def run(*argv):
    try:
        return main([str(a) for a in argv])
    except SystemExit as e:
        return e.code or 0


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [n for n in sys.modules if n == "mine" or n.startswith("package")]:
        monkeypatch.delitem(sys.modules, name)
    Path("mine.py").write_text(SOURCE)
    Path("package/inner").mkdir(parents=True)
    Path("package/inner/nets.py").write_text("from .parts import width\n" + SOURCE.replace("= Sizes().hidden", "= width"))
    Path("package/inner/parts.py").write_text("width = 5\n")
    return tmp_path


# --- what loads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["mine.py:make", "./mine.py:make", "mine:make", "package.inner.nets:make", "mine.py:whole", "mine:whole", "mine:chatty"],
)
def test_a_function_or_a_module_by_name(spec, here, capsys):
    model = ns.load_model(spec)
    assert not any(m.training for m in model.modules())
    torch.testing.assert_close(model(X), net()(X), rtol=0, atol=0)
    assert capsys.readouterr().out == ""  # which belongs to --json


def test_a_class_is_called(here):
    save_file(state(), "w.safetensors")
    for spec in ("mine.py:Net", "mine:Net"):
        torch.testing.assert_close(ns.load_model(spec, "w.safetensors")(X), outputs(state()))


def test_a_module_that_is_named_is_copied(here):
    save_file(state(), "w.safetensors")
    first = ns.load_model("mine:whole", "w.safetensors")
    assert sys.modules["mine"].whole.training
    torch.testing.assert_close(sys.modules["mine"].whole(X), net()(X))
    torch.testing.assert_close(first(X), outputs(state()))


def test_a_file_named_like_a_library_module_does_not_hide_it(here):
    Path("random.py").write_text(SOURCE)
    ns.load_model("random.py:make")
    assert not hasattr(sys.modules["random"], "make")


def test_a_path_in_another_folder_brings_its_neighbours(here):
    Path("far").mkdir()
    Path("far/sizes_of_far.py").write_text("hidden = 5\n")
    Path("far/nets.py").write_text("from sizes_of_far import hidden\n" + SOURCE)
    torch.testing.assert_close(ns.load_model("far/nets.py:make")(X), net()(X))


CHECKPOINTS = {
    "safetensors": lambda s, p: save_file(s, p),
    "state dict": lambda s, p: torch.save(s, p),
    "an old torch.save": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
    "state_dict": lambda s, p: torch.save({"state_dict": s, "epoch": 3}, p),
    "model": lambda s, p: torch.save({"model": s, "optimizer": {"state": {}, "lr": 0.1}}, p),
    "model in state": lambda s, p: torch.save({"model": {"state_dict": s}}, p),
    "DataParallel": lambda s, p: torch.save({f"module.{k}": v for k, v in s.items()}, p),
    "torch.compile": lambda s, p: torch.save({f"_orig_mod.{k}": v for k, v in s.items()}, p),
    "both": lambda s, p: save_file({f"module._orig_mod.{k}": v for k, v in s.items()}, p),
    "float64": lambda s, p: save_file({k: v.double() for k, v in s.items()}, p),
    "parameters": lambda s, p: torch.save({k: nn.Parameter(v) for k, v in s.items()}, p),
}


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_weights_in_every_form(form, here):
    CHECKPOINTS[form](state(), "w.pt")
    torch.testing.assert_close(ns.load_model("mine.py:make", "w.pt")(X), outputs(state()))


def test_tied_weights_may_be_stored_once(here):
    model = ns.load_model("mine:Tied")
    save_model(model, "w.safetensors")
    again = ns.load_model("mine:Tied", "w.safetensors")
    torch.testing.assert_close(again(X), model(X))
    assert len(list(again.parameters())) == len(list(model.parameters()))


def test_statistics_of_batchnorm_may_lack_their_count(here):
    tensors = {k: v for k, v in ns.load_model("mine:trains").state_dict().items() if "num_batches" not in k}
    tensors["2.running_mean"] = torch.full((10,), 3.0)
    save_file(tensors, "w.safetensors")
    model = ns.load_model("mine:trains", "w.safetensors")
    assert not model.training
    assert model[2].running_mean.tolist() == [3.0] * 10


def test_weights_of_the_normalised_network_fit_with_and_without_the_prefix(here):
    save_file(state(), "inner.safetensors")
    both = {f"model.{k}": v for k, v in state().items()} | {"mean": torch.tensor(0.5), "std": torch.tensor(0.25)}
    save_file(both, "outer.safetensors")
    for name in ("inner", "outer"):
        model = ns.load_model("mine:normalised", f"{name}.safetensors")
        torch.testing.assert_close(model(X), outputs(state(), (X - 0.5) / 0.25))


def test_a_run_directory(here):
    assert run("train", "--method", "standard", "--epochs", 1, "--out", "trained", "--quiet") == 0
    model = ns.load_model("trained")
    assert not model.training
    assert model(X).shape == (7, 10)
    with pytest.raises(ns.InvalidInput, match="its own weights"):
        ns.load_model("trained", "w.safetensors")


@pytest.mark.parametrize("workers", [1, 2])
def test_from_the_command_line_by_module(workers, here, capsys):
    save_file(state(), "w.safetensors")
    argv = ("--data", "digits", "--limit", 12, "--eps-x", "0,0.1", "--eps-w", "0,0.01", "--workers", workers, "--json")
    assert run("evaluate", "mine:make", "--weights", "w.safetensors", *argv, "--out", "e") == 0
    data = ns.load("digits").test.take(12)
    right = (outputs(state(), data.x).argmax(1) == data.y).double().mean().item()
    assert json.loads(capsys.readouterr().out)["accuracy"][0][0] == pytest.approx(right)


@pytest.mark.parametrize(
    "spec, label",
    [("mine.py:make", "mine"), ("a/b/mine.py:make", "mine"), ("package.inner.nets:make", "nets"), ("nets/best.onnx", "best"),
     ("timm:resnet10t", "resnet10t"), ("torchvision:resnet18", "resnet18"), ("hf:me/digits/net.onnx", "net"), ("runs/x", "x")],
)  # fmt: skip
def test_what_records_call_a_model(spec, label):
    from nonsingular.settings import EvaluateSettings

    assert EvaluateSettings(model=spec).label == label


# --- libraries and the Hub ----------------------------------------------------------------------------------------------------


def library(monkeypatch):
    """A stand-in for timm with one network."""
    fake = types.ModuleType("timm")
    fake.list_models = lambda: ["tiny", "wide"]
    fake.create_model = lambda name, pretrained, num_classes=1000: mlp((1, 8, 8), num_classes, hidden=(5,), bias=True)
    monkeypatch.setitem(sys.modules, "timm", fake)


def test_a_library_builds_the_network_for_the_classes_of_the_weights(here, monkeypatch):
    library(monkeypatch)
    save_file({k: state()[v] for k, v in NAMES.items()}, "w.safetensors")
    torch.testing.assert_close(ns.load_model("timm:tiny", "w.safetensors")(X), outputs(state()))
    with pytest.raises(ns.InvalidInput, match=r"--weights"):
        ns.load_model("timm:tiny")
    with pytest.raises(ns.InvalidInput, match="did you mean 'tiny'"):
        ns.load_model("timm:tinny", "w.safetensors")


def test_a_library_that_is_missing_or_broken_says_so(here, monkeypatch, tmp_path_factory):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ns.InvalidInput, match=r"timm is not installed.*pip install timm"):
        ns.load_model("timm:tiny", "w.safetensors")
    broken = tmp_path_factory.mktemp("site")
    (broken / "torchvision").mkdir()
    (broken / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setattr(sys, "path", [str(broken), *sys.path])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ns.InvalidInput, match=r"torchvision is broken .*nms does not exist"):
        ns.load_model("torchvision:resnet18", "w.safetensors")


def hub(monkeypatch, cached):
    """A stand-in for huggingface_hub that has some files in its cache, and an address where nobody listens."""
    fake = types.ModuleType("huggingface_hub")
    asked = []

    def download(repo, name, revision=None, local_files_only=False, etag_timeout=None):
        asked.append((repo, name, revision, local_files_only))
        if (repo, name) not in cached:
            raise FileNotFoundError("not in the cache")
        return cached[repo, name]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fake.hf_hub_download = download
    fake.constants = types.SimpleNamespace(ENDPOINT=f"http://127.0.0.1:{port}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_weights_from_the_hub(here, monkeypatch):
    save_file(state(), "w.safetensors")
    torch.save(state(6), "w.pt")
    asked = hub(monkeypatch, {("me/digits", "model.safetensors"): "w.safetensors", ("me/digits", "old/w.pt"): "w.pt"})
    torch.testing.assert_close(ns.load_model("mine:make", "hf:me/digits")(X), outputs(state()))
    torch.testing.assert_close(ns.load_model("mine:make", "hf:me/digits@v1/old/w.pt")(X), outputs(state(6)))
    assert asked == [("me/digits", "model.safetensors", None, True), ("me/digits", "old/w.pt", "v1", True)]


def test_the_hub_without_a_network_is_one_error_at_once(here, monkeypatch):
    hub(monkeypatch, {})
    started = time.monotonic()
    with pytest.raises(ns.InvalidInput, match=r"cannot be reached.*give its path"):
        ns.load_model("mine:make", "hf:me/digits")
    assert time.monotonic() - started < 8


def test_the_hub_without_its_package(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ns.InvalidInput, match=r"nonsingular\[hub\]"):
        ns.load_model("mine:make", "hf:me/digits")


# --- what does not load -------------------------------------------------------------------------------------------------------


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __reduce__(self):
        return os.mkdir, ("UNPICKLED",)


def script(path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net(), X), path)


def zipped(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def cut(path, source, part):
    data = Path(source).read_bytes()
    Path(path).write_bytes(data[: int(len(data) * part)])


def without(key):
    return {k: v for k, v in state().items() if k != key}


def make_bad_files():
    """File -> what its error must say."""
    save_file(state(), "good.safetensors")
    torch.save(state(), "good.pt")
    Path("empty.safetensors").touch()
    Path("empty.pt").touch()
    Path("page.safetensors").write_text("\n<!DOCTYPE html><html><body>404</body></html>")
    Path("page.pt").write_text("<html><title>Sign in</title></html>")
    Path("pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    Path("pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    cut("cut.safetensors", "good.safetensors", 0.7)
    cut("cut.pt", "good.pt", 0.7)
    Path("header.safetensors").write_bytes((10**9).to_bytes(8, "little") + b"{")
    torch.save(net(), "whole.pt")
    torch.save(net(), "whole_old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state(), "trap": Trap()}, "trap.pt")
    torch.save({"state_dict": state(), "best": np.float64(0.5)}, "scalar.pt")
    Path("bare.pkl").write_bytes(pickle.dumps({"w": [1.0]}))
    Path("trap.pkl").write_bytes(pickle.dumps(Trap()))
    script("script.pt")
    np.savez("arrays.npz", w=np.zeros(3))
    np.save("array.npy", np.zeros(3))
    Path("keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    zipped("model.keras", ["metadata.json", "config.json", "model.weights.h5"])
    zipped("photos.zip", ["a.jpg"])
    Path("weights.tar.gz").write_bytes(b"\x1f\x8b\x08" + b"\0" * 40)
    Path("model.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    Path("model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"w": "a.safetensors"}}')
    Path("notes.txt").write_text("the weights are on the other machine\n")
    Path("noise.pt").write_bytes(bytes(range(256)) * 8)
    Path("folder").mkdir()
    torch.save([1, 2, 3], "list.pt")
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, "no_state.pt")
    torch.save(torch.zeros(3), "tensor.pt")
    torch.save({}, "nothing.pt")
    save_file(without("fc1.bias"), "missing.safetensors")
    save_file(state() | {f"fc{i}.weight": torch.zeros(1) for i in range(7, 12)}, "more.safetensors")
    save_file(state() | {"fc1.weight": torch.zeros(5, 63)}, "narrow.safetensors")
    save_file({k: (v * 10).to(torch.int8) for k, v in state().items()}, "whole_numbers.safetensors")
    save_file({k.replace("fc", "dense"): v for k, v in state().items()}, "other_names.safetensors")
    save_file(state() | {"fc1.bias": torch.full((5,), torch.nan)}, "nan.safetensors")


WEIGHTS = {
    "nowhere.safetensors": "there is no file nowhere.safetensors", "folder": "is a folder", "empty.safetensors": "is empty",
    "empty.pt": "is empty", "page.safetensors": "HTML page", "page.pt": "HTML page", "pointer.safetensors": "git lfs pull",
    "pointer.pt": "git lfs pull", "cut.safetensors": "not a whole safetensors file", "cut.pt": "torn or damaged",
    "header.safetensors": "not a whole safetensors file", "whole.pt": "a whole pickled model", "trap.pt": "run any code",
    "whole_old.pt": "a whole pickled model", "scalar.pt": "save its weights", "bare.pkl": "is a pickle",
    "trap.pkl": "is a pickle",
    "script.pt": "TorchScript", "arrays.npz": "NumPy archive", "array.npy": "NumPy array", "keras.h5": "HDF5",
    "model.keras": "Keras", "photos.zip": "zip archive", "weights.tar.gz": "compressed", "model.gguf": "GGUF",
    "model.safetensors.index.json": "several files", "notes.txt": "text file", "noise.pt": "not a file of weights",
    "list.pt": "it holds a list", "no_state.pt": "epoch, optimizer", "tensor.pt": "it holds a Tensor",
    "nothing.pt": "no state dict", "missing.safetensors": "1 missing: fc1.bias", "more.safetensors": "5 unexpected: ",
    "narrow.safetensors": "fc1.weight (5, 63) instead of (5, 64)", "whole_numbers.safetensors": "of whole numbers",
    "other_names.safetensors": "4 missing: fc1.weight, fc1.bias, fc2.weight, ...", "nan.safetensors": "NaN",
    "hf:owner": "hf:owner/name", "hf:owner/../name": "hf:owner/name",
}  # fmt: skip
MODELS = {
    "mine.py:of_width": "needs arguments (width)", "mine:Wide": "needs arguments (width, depth)", "mine.py:fails": "TypeError",
    "mine.py:leaves": "SystemExit", "mine.py:a_dict": "a state dict", "mine.py:a_class": "the class Net",
    "mine.py:a_pair": "tuple",
    "mine.py:number": "int", "mine.py:table": "dict", "mine.py:mak": "did you mean 'make'", "mine:nothing": "it has ",
    "mine.py": "mine.py:function", "nowhere:make": "no module 'nowhere'", "package.nets:make": "no module 'package.nets'",
    "nowhere.py:make": "there is no file nowhere.py", "mine.pi:make": "mine", "a b:c": "does not name a model",
    "mine": "did you mean 'mine.py'",
    "package": "is a folder", "good.safetensors": "holds weights", "good.pt": "holds weights", "whole.pt": "holds weights",
    "script.pt": "TorchScript", "trap.pkl": "is a pickle", "arrays.npz": "NumPy archive", "keras.h5": "tf2onnx",
    "page.onnx": "HTML page", "empty.onnx": "is empty", "noise.onnx": "cannot be read as ONNX",
    "cut.onnx": "cannot be read as ONNX",
    "nowhere.onnx": "there is no file", "nowhere.pt2": "there is no file", "torn.pt2": "torn or damaged",
    "hf:owner/name": "not a file", "timm:resnet18": "timm", "torchvision:resnet18": "torchvision", "": "is empty",
    "broken.py:make": "SyntaxError", "imports.py:make": "not_installed_anywhere", "mine:on_meta": "meta device",
    "mine:lazy": "no size yet",
}  # fmt: skip


def bad_models():
    Path("page.onnx").write_text("<!DOCTYPE html>")
    Path("empty.onnx").touch()
    Path("noise.onnx").write_bytes(bytes(range(255, 0, -1)) * 8)
    Path("cut.onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x05")
    Path("torn.pt2").write_bytes(b"PK\x03\x04" + b"\0" * 64)
    Path("broken.py").write_text("def make(:\n")
    Path("imports.py").write_text("import not_installed_anywhere\n")


def refused(argv, quoted, here, capsys):
    before = files(here)
    code = run(
        "evaluate", *argv, "--data", "digits", "--limit", 5, "--eps-x", "0,0.1", "--eps-w", 0, "--workers", 1, "--out", "out"
    )
    said = capsys.readouterr()
    assert code == 2, said
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert len(said.err.strip().splitlines()) == 1
    assert quoted in said.err
    assert files(here) == before
    assert not Path("UNPICKLED").exists()


@pytest.mark.parametrize("name", WEIGHTS)
def test_bad_weights_are_one_line_and_leave_nothing_behind(name, here, capsys):
    make_bad_files()
    refused(("mine.py:make", "--weights", name), WEIGHTS[name], here, capsys)


@pytest.mark.parametrize("spec", MODELS)
def test_bad_models_are_one_line_and_leave_nothing_behind(spec, here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    if "onnx" in spec:
        pytest.importorskip("onnx")
    make_bad_files()
    bad_models()
    refused((spec,), MODELS[spec], here, capsys)


def test_weights_that_do_not_fit_leave_the_model_as_it_was():
    from nonsingular.models.checkpoints import fit_weights

    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ns.InvalidInput, match="does not fit"):
        fit_weights(model, {**before, "3.weight": torch.zeros(10, 4), "1.weight": torch.zeros(5, 64)}, "w")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_traps_are_traps(here):
    """The files of the table do run code where they are unpickled."""
    Path("trap.pkl").write_bytes(pickle.dumps(Trap()))
    pickle.loads(Path("trap.pkl").read_bytes())
    assert Path("UNPICKLED").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_ends_in_anything_but_a_named_error(data, tmp_path_factory):
    """Bytes changed, cut or added: the file loads, or InvalidInput says why not."""
    folder = tmp_path_factory.getbasetemp() / "damage"
    folder.mkdir(exist_ok=True)
    source = folder / "nets.py"
    source.write_text(SOURCE)
    form = data.draw(st.sampled_from(["state dict", "safetensors", "an old torch.save"]))
    CHECKPOINTS[form](state(), folder / "good")
    raw = bytearray((folder / "good").read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, min(len(raw), 600) - 1))] = data.draw(st.integers(0, 255))
    (folder / "bad.pt").write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]) + data.draw(st.binary(max_size=8)))
    with contextlib.suppress(ns.InvalidInput):  # and nothing else
        ns.load_model(f"{source}:make", folder / "bad.pt")


@given(st.binary(max_size=60), st.sampled_from(["m.onnx", "m.pt2", "m.pt", "m.safetensors", "m"]))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_no_model(tmp_path_factory, noise, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(noise)
    with pytest.raises(ns.InvalidInput):
        ns.load_model(path)
