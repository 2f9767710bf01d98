"""Attacks on any module: networks of every kind that vmap or tracing stumbles over, and one line for those that cannot work."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import nonsingular as ns
from nonsingular.catalog import ATTACKS, lookup
from nonsingular.cli.main import main
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network import calling
from nonsingular.network.calling import _at_once, _at_once_doubled, _one_by_one, _way, logits_at, logits_of_each
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.network import network_of, twin

N, T, C, K = 3, 3, 4, 3
"""Examples, and the shape (T, C) of one: a sequence of T vectors, or an image of one channel after unsqueeze."""


class Of(nn.Module):
    """A function of the inputs and of named parts."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def flat(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(T * C, 5), *more, nn.ReLU(), nn.Linear(5, K))


def recurrent(kind: Any, **options: Any) -> nn.Module:
    width = 5 * (2 if options.get("bidirectional") else 1)
    first = options.get("batch_first", False)
    return Of(
        lambda m, x: m.head(m.cell(x if first else x.transpose(0, 1))[0][(slice(None), -1) if first else -1]),
        cell=kind(C, 5, **options), head=nn.Linear(width, K),
    )  # fmt: skip


def packed(m: Any, x: Tensor) -> Tensor:
    sequence = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), T), batch_first=True)
    return m.head(m.cell(sequence)[1][-1])


class Own(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy().clip(0))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0] > 0)


class Counting(nn.Module):
    """Buffers that forward updates, in place and by name, and a value that it keeps."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = flat()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(T, C))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.last = x.detach()
        return self.net(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(T * C, T * C), nn.Linear(T * C, T * C), nn.Linear(T * C, K)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x.flatten(1))))))


class Listed(nn.Module):
    """A parameter that forward reads from a list of its own, which functional_call does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(K, T * C))
        self.all = [self.w]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.all[0])


class Scalar(nn.Module):
    def __init__(self, add: bool) -> None:
        super().__init__()
        self.a, self.b, self.g, self.add = nn.Linear(T * C, 5), nn.Linear(5, K), nn.Parameter(torch.tensor(0.7)), add

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x.flatten(1))
        return self.b(F.relu(z + self.g if self.add else z * self.g))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(flat())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(flat(), torch.rand(2, T, C))


def hooked() -> nn.Module:
    model = flat()
    model[1].register_forward_hook(lambda module, given, out: 2 * out)
    model.register_forward_pre_hook(lambda module, given: (given[0] + 0.1,))
    return model


def attention(m: Any, x: Tensor) -> Tensor:
    z = m.enter(x)
    return m.head(m.attend(z, z, z)[0].mean(1))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: recurrent(nn.LSTM, batch_first=True),
    "lstm, time first": lambda: recurrent(nn.LSTM),
    "lstm, bidirectional, two layers": lambda: recurrent(nn.LSTM, batch_first=True, bidirectional=True, num_layers=2),
    "lstm, projected": lambda: Of(
        lambda m, x: m.head(m.cell(x)[0][:, -1]), cell=nn.LSTM(C, 5, proj_size=2, batch_first=True), head=nn.Linear(2, K)
    ),
    "gru": lambda: recurrent(nn.GRU, batch_first=True),
    "rnn": lambda: recurrent(nn.RNN, nonlinearity="relu"),
    "lstm, packed": lambda: Of(lambda m, x: packed(m, x), cell=nn.RNN(C, 5, batch_first=True), head=nn.Linear(5, K)),
    "lstm in a nested module": lambda: nn.Sequential(
        nn.Identity(), Of(lambda m, x: m.inner(2 * x), inner=recurrent(nn.LSTM, batch_first=True))
    ),
    "lstm cell in a loop": lambda: Of(
        lambda m, x: m.head(m.cell(x[:, 1], m.cell(x[:, 0]))[0]), cell=nn.LSTMCell(C, 5), head=nn.Linear(5, K)
    ),
    "multihead attention": lambda: Of(
        attention, enter=nn.Linear(C, 4), attend=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, K)
    ),
    "transformer encoder": lambda: Of(
        lambda m, x: m.head(m.body(m.enter(x)).mean(1)), enter=nn.Linear(C, 4), head=nn.Linear(4, K),
        body=nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1),
    ),
    "position of shape (1, T, C)": lambda: Of(
        lambda m, x: m.net((x + m.place).relu()), place=nn.Parameter(0.1 * torch.randn(1, T, C)), net=flat()
    ),
    "scalar factor": lambda: Scalar(False),
    "scalar summand": lambda: Scalar(True),
    "empty parameter": lambda: Of(lambda m, x: m.net(x), net=flat(), none=nn.Parameter(torch.zeros(0, 3))),
    "control flow": lambda: Of(lambda m, x: m.net(x) if x.sum() > 0 else -m.net(x), net=flat()),
    "an item of the weights": lambda: Of(lambda m, x: m.net(x) * m.net[1].weight.abs().max().item(), net=flat()),
    "numpy on the way": lambda: Of(
        lambda m, x: m.net(x) + torch.from_numpy(x.detach().flatten(1).numpy().max(1, keepdims=True)), net=flat()
    ),
    "custom function without a rule": lambda: Of(
        lambda m, x: m.b(Own.apply(m.a(x.flatten(1)))), a=nn.Linear(T * C, 5), b=nn.Linear(5, K)
    ),
    "checkpoint": lambda: Of(
        lambda m, x: torch.utils.checkpoint.checkpoint(m.net, x, use_reentrant=False), net=flat()
    ),
    "rrelu": lambda: flat(nn.RReLU()),
    "squeeze": lambda: Of(lambda m, x: m.head(m.conv(x[:, None]).squeeze()), conv=nn.Conv2d(1, 5, (T, C)), head=nn.Linear(5, K)),
    "squeeze, then flatten": lambda: Of(lambda m, x: m.head(x.squeeze().flatten(1)), head=nn.Linear(T * C, K)),
    "squeezed logits": lambda: Of(lambda m, x: m.net(x)[:, :, None].squeeze(), net=flat()),
    "scripted": scripted,
    "jit-traced": traced,
    "data parallel": lambda: nn.DataParallel(flat()),
    "data parallel inside": lambda: nn.Sequential(nn.DataParallel(nn.Flatten()), nn.DataParallel(nn.Linear(T * C, K))),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(flat()),
    "buffers updated": Counting,
    "tied": Tied,
    "a parameter in a list": Listed,
    "unused parameters": lambda: Of(lambda m, x: m.net(x), net=flat(), rest=nn.Linear(2, 2)),
    "unused vector of NaN": lambda: Of(lambda m, x: m.net(x), net=flat(), rest=nn.Parameter(torch.full((2,), torch.nan))),
    "frozen": lambda: flat().requires_grad_(False),
    "an extra argument": lambda: Of(lambda m, x, mask=None: m.net(x), net=flat()),
    "in place on the input": lambda: Of(lambda m, x: m.net(x.mul_(2).sub_(0.1)), net=flat()),
    "hooks": hooked,
    "batch norm": lambda: nn.Sequential(nn.Conv1d(T, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(12, K)),
    "integer parameter": lambda: Of(
        lambda m, x: m.net(x) + m.shift, net=flat(), shift=nn.Parameter(torch.arange(K), requires_grad=False)
    ),
    "complex vector": lambda: Of(
        lambda m, x: m.net(x) * m.turn.abs(), net=flat(), turn=nn.Parameter(torch.full((K,), 1 + 1j))
    ),
    "dropout in eval mode": lambda: flat(nn.Dropout()),
    "a list of parts": lambda: Of(
        lambda m, x: sum(part(x) for part in m.parts), parts=nn.ModuleList([flat(), flat()])
    ),
    "fft": lambda: Of(lambda m, x: m.net(torch.fft.rfft(x).abs()), net=nn.Sequential(nn.Flatten(), nn.Linear(T * 3, K))),
    "embedding of rounded inputs": lambda: Of(
        lambda m, x: m.net(x) + m.table((4 * x[:, 0, 0]).long()), net=flat(), table=nn.Embedding(5, K)
    ),
}  # fmt: skip
EPS_X, EPS_W = [0.0, 0.1], [0.0, 0.05]


def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = MODULES[name]().eval()
    x = torch.rand(N, T, C)
    with torch.no_grad():
        y = copy.deepcopy(model)(x.clone()).argmax(1)
    y[0] = (y[0] + 1) % K  # one that is wrong
    return model, x, y


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}


def light(model: nn.Module, x: Tensor, y: Tensor, ball: ns.JointBall, *, scope: Any = "sample", start: Any = None) -> Any:
    """The search behind the default, with a small budget."""
    return ns.apgd(model, x, y, ball, scope=scope, start=start, steps=1, keep=0)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("scope", ["sample", "dataset"])
@pytest.mark.parametrize("name", MODULES)
def test_surface(name: str, scope: Any) -> None:
    model, x, y = built(name)
    before, given = bits(model), x.clone()
    found = ns.evaluate(model, (x, y), eps_x=EPS_X, eps_w=EPS_W, scope=scope, attack=ns.Attack("light", light, starts=True))
    assert found.accuracy[0, 0] == (N - 1) / N  # the module's own
    assert (found.accuracy[1:] <= found.accuracy[:-1]).all()
    assert (found.accuracy[:, 1:] <= found.accuracy[:, :-1]).all()
    assert torch.equal(x, given)
    after = bits(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


# --- one function for attack and verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, way",
    [
        ("scalar factor", _at_once), ("transformer encoder", _at_once), ("hooks", _at_once), ("squeeze", _at_once_doubled),
        ("lstm", _one_by_one), ("control flow", _one_by_one), ("a parameter in a list", _one_by_one), ("scripted", _one_by_one),
        ("buffers updated", _one_by_one),
    ],
)  # fmt: skip
def test_the_way_is_chosen_once(name: str, way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = built(name)
    assert _way(twin(model), x) is way
    network = network_of(model)
    weights = {n: p.detach().expand(N, *p.shape) for n, p in model.named_parameters()}
    tried: list[Any] = []
    monkeypatch.setattr(calling, "_way", lambda *args: tried.append(_way(*args)) or tried[-1])
    first, second = (logits_of_each(network)(weights, x) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert tried == [way]


@pytest.mark.parametrize("name", ["scalar factor", "transformer encoder", "tied", "batch norm", "position of shape (1, T, C)"])
def test_one_by_one_is_vmap(name: str) -> None:
    """Logits and gradients, in the inputs and in every parameter, and those of the module with the weights written into it."""
    model, x, _ = built(name)
    model, x = model.double(), x.double()
    weights = {n: p.detach() + 0.1 * torch.randn(N, *p.shape).double() for n, p in model.named_parameters()}
    found: list[list[Tensor]] = []
    for way in (_at_once, _one_by_one):
        points = [t.clone().requires_grad_() for t in (x, *weights.values())]
        logits = way(twin(model))(dict(zip(weights, points[1:], strict=True)), points[0])
        found.append([logits, *torch.autograd.grad(logits.square().sum(), points)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    moved = copy.deepcopy(model)
    for i in range(N):
        with torch.no_grad():
            for n, p in moved.named_parameters():
                p.copy_(weights[n][i])
            torch.testing.assert_close(moved(x[i : i + 1]), found[0][0][i : i + 1])


@pytest.mark.parametrize("name", ["lstm", "scripted", "a parameter in a list"])
def test_sampled_perturbations_are_no_worse(name: str) -> None:
    model, x, y = built(name)
    ball = ns.JointBall(0.2, 0.2)
    with torch.no_grad():
        y = copy.deepcopy(model)(x).argmax(1)
    point = ns.apgd(model, x, y, ball, scope="sample", steps=4, restarts=2, targets=1, keep=1)
    reached = worst_margin(margins(logits_at(model, point), y), y)
    boxes, lowest = ball.weight_boxes(dict(model.named_parameters())), torch.full((N,), torch.inf)
    moved = copy.deepcopy(model)
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for n, p in moved.named_parameters():
                if n in boxes:
                    p.copy_(torch.where(torch.rand(p.shape, generator=generator) < 0.5, boxes[n].lo, boxes[n].hi))
            z = moved(torch.where(torch.rand(x.shape, generator=generator) < 0.5, *ball.input_box(x).__dict__.values()))
        lowest = torch.minimum(lowest, worst_margin(margins(z, y), y))
    assert (reached <= lowest + 1e-6).all()


# --- every attack, and certificates ---------------------------------------------------------------------------------------

FEW: dict[str, dict[str, int]] = {
    "paper": {"steps": 2}, "neuron": {"steps": 2}, "apgd": {"steps": 1, "keep": 0}, "square": {"steps": 2},
    "alternating": {"rounds": 1, "steps": 1}, "corners": {"steps": 2, "draws": 2}, "strongest": {},
}  # fmt: skip
ODD = ["rnn", "control flow", "scripted", "scalar factor", "squeeze", "data parallel"]


@pytest.mark.parametrize("attack", sorted(ATTACKS))
@pytest.mark.parametrize("name", ODD)
def test_every_attack(name: str, attack: str) -> None:
    model, x, y = built(name)
    x, y, ball = x[:2], y[:2], ns.JointBall(0.05, 0.01, moves="all")
    for scope in ("sample", "dataset") if attack not in ("strongest", "alternating") else ("dataset",):
        run = partial(lookup(ATTACKS, attack, "attack"), model, x, y, ball, scope=scope, **FEW[attack])
        if attack == "neuron" and (scope != "sample" or name != "data parallel"):
            with pytest.raises(InvalidInput, match=r"no rule|trace|scope"):
                run()
            continue
        point = run()
        point.check(model, x, ball)
        assert torch.isfinite(logits_at(model, point)).all()


@pytest.mark.parametrize("name", ["lstm, packed", "control flow", "scripted", "numpy on the way", "fft"])
def test_no_certificate_without_a_rule(name: str) -> None:
    model, x, y = built(name)
    for method in ("crown", "interval", "theorem1"):
        with pytest.raises(UnsupportedModel):
            ns.certify(model, x, y, ns.JointBall(0.01, 0.01), bound=method)


@pytest.mark.parametrize("name", ["data parallel", "data parallel inside"])
def test_wrapper_is_what_it_wraps(name: str) -> None:
    """The same certificate; parameters keep the names that the user's module gives them."""
    model, x, y = built(name)
    bare = nn.Sequential(*(part.module for part in model)) if isinstance(model, nn.Sequential) else model.module
    ball = ns.JointBall(0.01, 0.01)
    assert torch.equal(ns.certify(model, x, y, ball).margins, ns.certify(bare, x, y, ball).margins)
    point = ns.apgd(model, x, y, ball, scope="dataset")
    assert set(point.weights) == {n for n, p in model.named_parameters() if p.dim() > 1}
    assert all("module." in n for n in point.weights)


@pytest.mark.slow  # imports torch.compile
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`")
def test_compiled_module_is_what_it_wraps() -> None:
    model, x, y = built("scalar factor")
    compiled = torch.compile(model, backend="eager")  # compiles at its first call, which never comes
    found = ns.apgd(compiled, x, y, ns.JointBall(0.05, 0.01), scope="dataset")
    assert set(found.weights) == {"_orig_mod.a.weight", "_orig_mod.b.weight"}
    plain = ns.apgd(model, x, y, ns.JointBall(0.05, 0.01), scope="dataset")
    assert torch.equal(found.x, plain.x)


def test_fast_path_is_as_it_was() -> None:
    model, x, y = built("transformer encoder")
    for setting in (True, False):
        torch.backends.mha.set_fastpath_enabled(setting)
        ns.apgd(model, x, y, ns.JointBall(0.05, 0.01), scope="sample", steps=1, keep=0)
        assert torch.backends.mha.get_fastpath_enabled() is setting
    torch.backends.mha.set_fastpath_enabled(True)


# --- what cannot work is said in one line ---------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(K))


def kept() -> nn.Module:
    model = Of(lambda m, x: m.net(x), net=flat())
    model.seen = model.net(torch.rand(1, T, C))
    return model


class Packed(torch.Tensor):
    """As torchao holds its weights."""


Packed.__module__ = "torchao.quantization"


def in_words() -> nn.Module:
    net = flat()
    net[1].weight = nn.Parameter(net[1].weight.detach().as_subclass(Packed))
    return net


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(flat(), {nn.Linear}, dtype=torch.qint8)


def locked() -> nn.Module:
    model = flat()
    model.lock = threading.Lock()
    return model


def failing(m: Any, x: Tensor) -> Tensor:
    raise KeyError("pixel_values\nand more")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dynamically quantised": (quantised, "is quantised: Linear at '1'"),
    "of packed words": (in_words, "is quantised: Packed at '1.weight'"),
    "lazy": (lazy, "'1.weight' of the model has no size yet; run the model once on one batch"),
    "on the meta device": (lambda: flat().to("meta"), "is on the meta device"),
    "a tuple": (lambda: Of(lambda m, x: (m.net(x),), net=flat()), "returns a tuple, not a tensor"),
    "a dict": (lambda: Of(lambda m, x: {"logits": m.net(x)}, net=flat()), "returns a dict, not a tensor"),
    "a dataclass": (lambda: Of(lambda m, x: Output(m.net(x)), net=flat()), "returns a Output, not a tensor"),
    "a sequence of logits": (lambda: nn.Linear(C, K), "a classifier returns (B, K) logits"),
    "a needed argument": (lambda: Of(lambda m, x: m.net(x, x), net=flat()), "does not accept inputs of shape"),
    "its own exception": (lambda: Of(failing), "and torch.float32: 'pixel_values"),
    "an embedding of the inputs": (lambda: nn.Sequential(nn.Flatten(), nn.EmbeddingBag(9, K)), "does not accept inputs"),
    "NumPy": (lambda: Of(lambda m, x: torch.from_numpy(m.net(x).detach().numpy()), net=flat()), "'square' (on inputs)"),
    "argmax": (lambda: Of(lambda m, x: F.one_hot(m.net(x).argmax(1), K).float(), net=flat()), "carry no gradient"),
    "something that cannot be copied": (locked, "cannot be copied (cannot pickle"),
    "a result that was kept": (kept, "because it keeps seen, computed with gradients"),
    "a NaN in a weight that is not used": (
        lambda: Of(lambda m, x: m.net(x), net=flat(), rest=nn.Parameter(torch.full((2, 2), torch.nan))),
        "'rest' of the model holds NaN",
    ),
    "a complex matrix": (
        lambda: Of(lambda m, x: m.net(x) + m.rest.abs().sum(), net=flat(), rest=nn.Parameter(torch.ones(2, 2) * 1j)),
        "'rest' of the model is torch.complex64, in which there is no ℓ∞ ball",
    ),
    "an integer matrix": (
        lambda: Of(lambda m, x: m.net(x), net=flat(), rest=nn.Parameter(torch.ones(2, 2).long(), requires_grad=False)),
        "'rest' of the model is torch.int64",
    ),
    "a sparse matrix": (
        lambda: Of(lambda m, x: m.net(x), net=flat(), rest=nn.Parameter(torch.eye(2).to_sparse())),
        "'rest' of the model is sparse",
    ),
    "a function": (lambda: lambda x: x, "the model is of type function"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    make, message = REFUSED[name]
    torch.manual_seed(0)
    model, x, y = make(), torch.rand(2, T, C), torch.tensor([0, 1])
    if isinstance(model, nn.Module):
        model.eval()
    asked: list[Callable[[], Any]] = [
        lambda: ns.evaluate(model, (x, y), eps_x=[0, 0.1], eps_w=[0, 0.1]),
        lambda: ns.evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.1], scope="dataset"),
        lambda: ns.strongest(model, x, y, ns.JointBall(0.1, 0.1)),
        lambda: ns.strongest(model, x, y, ns.JointBall(0.1, 0.1), scope="batch"),
    ]
    for ask in asked:
        with pytest.raises(InvalidInput) as e:
            ask()
        assert message in str(e.value)
        assert "\n" not in str(e.value)


def test_named_radii_leave_the_others_alone() -> None:
    model = Of(lambda m, x: m.net(x), net=flat(), rest=nn.Parameter(torch.full((2, 2), torch.nan))).eval()
    x, y = torch.rand(2, T, C), torch.tensor([0, 1])
    found = ns.evaluate(model, (x, y), eps_x=[0.0], eps_w={"net.1.weight": 0.1}, scope="dataset")
    assert found.accuracy.shape == (11, 1)


# --- the command line -----------------------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

def half(): return net().half()
def bfloat16(): return net().bfloat16()
def double(): return net().double()

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x), x

def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""
ARGUMENTS = ["--data", "digits", "--limit", "40", "--workers", "1", "--eps-x", "0,0.1", "--eps-w", "0,0.01"]


@pytest.mark.parametrize("kind, scope", [("half", "sample"), pytest.param("bfloat16", "dataset", marks=pytest.mark.slow)])
def test_command_line_gives_the_model_its_dtype(
    kind: str, scope: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    run = tmp_path / "run"
    assert main(["evaluate", f"{tmp_path}/model.py:{kind}", *ARGUMENTS, "--scope", scope, "--out", str(run)]) == 0
    assert f"torch.{'float16' if kind == 'half' else kind}" in (run / "results.json").read_text()
    assert main(["verify", str(run), "--model", f"{tmp_path}/model.py:{kind}"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("kind, message", [("Pair", "returns a tuple"), ("lazy", "has no size yet")])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_command_line_refuses_in_one_line(kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    args = [
        "evaluate",
        f"{tmp_path}/model.py:{kind}",
        "--data",
        "digits",
        "--limit",
        "4",
        "--eps-x",
        "0,0.1",
        "--eps-w",
        "0,0.01",
    ]
    assert main([*args, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
