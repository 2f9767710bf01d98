"""torch.export files: the logits, parameters, attacks and bounds of the module that was exported, and no code of the file."""

import importlib
import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nonsingular as ns
from nonsingular.models.architectures import conv, mlp, resnet
from nonsingular.models.torch_archive import is_expression
from nonsingular.models.torch_export import load_exported
from nonsingular.network.dense import dense_chain
from test_loading import Trap

SHAPE = (2, 8, 8)
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(3))


class Mixed(nn.Module):
    """Operations that export as something else than what was written."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(2, 4, 3, padding=1), nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(3 * 4 * 4, 5)
        self.norm.running_mean += 0.1
        self.drop, self.scale = nn.Dropout(0.5), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        y = F.max_pool2d(F.leaky_relu(self.norm(self.stem(x)), 0.1), 2)
        y = torch.cat([F.avg_pool2d(y[:, :2], 1), y[:, 2:]], 1)
        y = F.avg_pool2d(F.gelu(self.up(y)), 2) * self.scale
        return self.last(self.drop(y.view(y.shape[0], -1))).clamp(-50, 50)


def make(name):
    torch.manual_seed(0)
    nets = {
        "mlp": lambda: mlp(SHAPE, 5, hidden=(8,), bias=True), "conv": lambda: conv(SHAPE, 5, hidden=(4,)),
        "resnet": lambda: resnet(SHAPE, 5, hidden=(4, 6)), "mixed": Mixed,
        "normalised": lambda: ns.Normalized(mlp(SHAPE, 5, hidden=(8,)), [0.4, 0.5], [0.2, 0.3]),
    }  # fmt: skip
    return nets[name]().eval()


def export(model, path, dynamic=True, x=X[:3]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = ({0: torch.export.Dim("batch")},) if dynamic else None
        torch.export.save(torch.export.export(model, (x,), dynamic_shapes=sizes), path)
    return path


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet", "mixed", "normalised"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_it_is_the_module_that_was_exported(name, dynamic, tmp_path):
    model = make(name)
    path = export(model, tmp_path / "m.pt2", dynamic)
    if name == "mixed" and not dynamic:
        with pytest.raises(ns.InvalidInput, match=r"batches of exactly 3.*dynamic_shapes"):
            load_exported(path)
        return
    found = ns.load_model(path)
    assert not found.training
    assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    torch.testing.assert_close(found(X), model(X))
    y = model(X).argmax(1)
    gradients = (torch.autograd.grad(F.cross_entropy(m(X), y), list(m.parameters())) for m in (found, model))
    for (name_, _), g, h in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(g, h, msg=name_)


def test_one_example_is_enough_to_export(tmp_path):
    model = make("resnet")
    torch.testing.assert_close(load_exported(export(model, tmp_path / "m.pt2", dynamic=False, x=X[:1]))(X), model(X))


@pytest.mark.parametrize("name", ["mlp", "normalised", *(pytest.param(n, marks=pytest.mark.slow) for n in ("conv", "resnet"))])
def test_bounds_and_attacks_give_what_they_give_on_the_module(name, tmp_path):
    model = make(name)
    found = load_exported(export(model, tmp_path / "m.pt2"))
    y, ball = model(X).argmax(1), ns.JointBall(0.01, 0.003)
    for method in ("interval", "crown"):
        want = ns.certify(model, X, y, ball, bound=method).margins
        torch.testing.assert_close(ns.certify(found, X, y, ball, bound=method).margins, want)
    for scope in ("sample", "batch"):
        want = ns.evaluate(model, (X, y), eps_x=[0, 0.1], eps_w=[0, 0.02], scope=scope)
        assert (
            ns.evaluate(found, (X, y), eps_x=[0, 0.1], eps_w=[0, 0.02], scope=scope).accuracy.tolist() == want.accuracy.tolist()
        )
    if name in ("mlp", "normalised"):
        assert dense_chain(found).weight_names == dense_chain(model).weight_names


def test_an_operation_without_a_rule_can_be_attacked_and_is_refused_by_bounds(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(128, 4)

        def forward(self, x):
            return self.last(torch.sin(x.flatten(1)))

    model = Odd().eval()
    found = load_exported(export(model, tmp_path / "m.pt2"))
    y = model(X).argmax(1)
    with pytest.raises(ns.UnsupportedModel, match="sin"):
        ns.certify(found, X, y, ns.JointBall(0.01, 0.01))
    assert ns.evaluate(found, (X, y), eps_x=[0, 0.5], eps_w=[0, 0.5]).accuracy[-1, -1] < 1


def test_a_model_exported_in_train_mode_is_refused(tmp_path):
    with pytest.raises(ns.InvalidInput, match="train mode"):
        load_exported(export(make("resnet").train(), tmp_path / "m.pt2"))
    with pytest.raises(ns.InvalidInput, match="train mode"):
        load_exported(export(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(128, 3)), tmp_path / "d.pt2"))


def test_two_inputs_or_outputs_are_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    class Pair(nn.Module):
        def forward(self, x):
            return x, x + 1

    torch.export.save(torch.export.export(Two(), (X, X)), tmp_path / "two.pt2")
    with pytest.raises(ns.InvalidInput, match="2 inputs"):
        load_exported(tmp_path / "two.pt2")
    with pytest.raises(ns.InvalidInput, match="2 values"):
        load_exported(export(Pair(), tmp_path / "pair.pt2", dynamic=False))
    with pytest.raises(ns.InvalidInput, match="int64"):
        load_exported(export(nn.Embedding(4, 3), tmp_path / "words.pt2", dynamic=False, x=torch.zeros(2, dtype=torch.long)))


def test_it_has_its_own_weights(tmp_path):
    path = export(make("mlp"), tmp_path / "m.pt2")
    with pytest.raises(ns.InvalidInput, match="its own weights"):
        ns.load_model(path, "w.safetensors")


# --- a crafted file runs no code ----------------------------------------------------------------------------------------------


def changed(source, target, change):
    """A copy of an archive in which `change(name, bytes)` gives the bytes of a file, None to leave it out; or new files."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for name, data in (change(None, b"") or {}).items():
            new.writestr(f"{root}/{name}", data)
    return target


def in_model(edit):
    def change(name, data):
        if name and name.endswith("models/model.json"):
            found = json.loads(data)
            edit(found)
            return json.dumps(found).encode()
        return data or None

    return change


def a_call(found):
    found["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.mkdir"


def a_size(found):
    text = json.dumps(found).replace("Symbol('s", "__import__('os').mkdir('UNPICKLED') or Symbol('s")
    found.clear()
    found.update(json.loads(text))


def a_guard(found):
    found["guards_code"] = ["__import__('os').mkdir('UNPICKLED') or True"]


def trapped(folder):
    def change(name, data):
        if name and f"/{folder}/" in name and not name.endswith(".json"):
            stream = io.BytesIO()
            torch.save({"args": Trap()}, stream)
            return stream.getvalue()
        if name and folder == "data/weights" and name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        return data or None

    return change


def an_object(name, data):
    return {"data/constants/opaque_obj_0": pickle.dumps(Trap())} if name is None else data


CRAFTED = {
    "a function of torch": in_model(a_call), "a size": in_model(a_size), "an example input": trapped("data/sample_inputs"),
    "weights": trapped("data/weights"), "an object": an_object,
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_refused_before_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(make("mlp"), Path("m.pt2"))
    changed("m.pt2", "crafted.pt2", CRAFTED[name])
    if name == "an example input":  # is never read
        assert load_exported(Path("crafted.pt2"))(X).shape == (6, 5)
    else:
        with pytest.raises(ns.InvalidInput):
            load_exported(Path("crafted.pt2"))
    assert not Path("UNPICKLED").exists()


def test_the_code_of_guards_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make("mlp")
    export(model, Path("m.pt2"))
    changed("m.pt2", "crafted.pt2", in_model(a_guard))
    torch.testing.assert_close(load_exported(Path("crafted.pt2"))(X), model(X))
    assert not Path("UNPICKLED").exists()


@pytest.mark.filterwarnings("ignore")
def test_the_crafted_size_does_run_where_torch_reads_it(tmp_path, monkeypatch):
    """So that the test above tests something."""
    monkeypatch.chdir(tmp_path)
    export(make("mlp"), Path("m.pt2"))
    changed("m.pt2", "crafted.pt2", in_model(a_size))
    try:
        torch.export.load("crafted.pt2")
    except Exception as e:
        print(e)
    assert Path("UNPICKLED").exists()


@pytest.mark.parametrize(
    "text, good",
    [("Symbol('s77', positive=True, integer=True)", True), ("s0", True), ("2*s0 + 3", True), ("Max(1, s1)", True),
     ("Mul(Integer(2), Symbol('s77', integer=True))", True), ("FloorDiv(u0, 4)", True), ("open('x')", False),
     ("().__class__", False), ("Symbol('__import__(1)')", False), ("[1][0]", False), ("lambda: 1", False), ("eval(s0)", False),
     ("Symbol(f'{s0}')", False), ("s0.name", False), ("1 +", False), ("S('exec(1)')", False)],
)  # fmt: skip
def test_sizes_are_sums_and_products(text, good):
    assert is_expression(text) is good


# --- quantised layers -------------------------------------------------------------------------------------------------------


class InWords(nn.Module):
    """Two layers as torchao converts them: words of the weights, and a signal that becomes words and real numbers again."""

    def __init__(self, kind=torch.uint8):
        super().__init__()
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operations
        torch.manual_seed(0)
        self.kind = kind
        self.register_buffer("first", torch.randint(-127, 128, (6, 4), dtype=torch.int8))
        self.register_buffer("last", torch.randint(-127, 128, (3, 6), dtype=torch.int8))
        self.register_buffer("steps", torch.rand(6) / 90 + 0.001)
        self.register_buffer("zeros", torch.zeros(6, dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(6) / 5)

    def forward(self, x):
        on = torch.ops.quantized_decomposed
        low, high = (0, 255) if self.kind == torch.uint8 else (-10, 10)
        words = (0.004, 3 if low == 0 else 0, low, high, self.kind)
        x = on.dequantize_per_tensor(on.quantize_per_tensor(x, *words), *words)
        h = F.relu(
            F.linear(x, on.dequantize_per_channel(self.first, self.steps, self.zeros, 0, -128, 127, torch.int8), self.bias)
        )
        h = on.dequantize_per_tensor(on.quantize_per_tensor(h, *words), *words)
        return F.linear(h, on.dequantize_per_tensor(self.last, 0.01, 0, -128, 127, torch.int8))


def test_quantised_layers_give_the_bits_of_torch_and_can_be_attacked_and_certified(tmp_path):
    net, x = InWords(), torch.rand(200, 4, generator=torch.Generator().manual_seed(1))
    model = load_exported(export(net, tmp_path / "q.pt2", x=x[:3]))
    assert torch.equal(model(x), net(x))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {"bias": (6,), "first_": (6, 4), "last_": (3, 6)}
    y, ball = model(x).argmax(1), ns.JointBall(0.03, 0.001)
    assert torch.autograd.grad(model(x.requires_grad_()).sum(), x)[0].abs().sum() > 0
    x = x.detach()
    proven = ns.certify(model, x[:40], y[:40], ball, bound="crown").verified
    lost = model(ns.strongest(model, x[:40], y[:40], ns.JointBall(0.03, 0.0), scope="dataset").x).argmax(1) != y[:40]
    assert proven.any() and not (proven & lost).any()


def test_words_that_are_not_whole_numbers_are_refused_by_name(tmp_path):
    path = export(InWords(torch.float8_e4m3fn), tmp_path / "q.pt2", x=torch.rand(3, 4))
    with pytest.raises(ns.UnsupportedModel, match="float8_e4m3fn, not whole numbers"):
        load_exported(path)
