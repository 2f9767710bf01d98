"""Quantised ONNX files: the bits of onnxruntime, attacks through the rounding, and certificates against brute force."""

import itertools

import numpy as np
import pytest
import torch

import nonsingular as ns

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

from nonsingular.bounds.interval import Region  # noqa: E402
from nonsingular.models.onnx_rules import CONTRIBUTED  # noqa: E402
from nonsingular.network.graph import precise, trace_graph  # noqa: E402
from nonsingular.network.network import network_of  # noqa: E402
from nonsingular.network.rounded import rounded, unrounded  # noqa: E402
from quantised_models import N, dense, quantised, reference, residual, written  # noqa: E402
from soundness import all_bounds, branched, lowest_found, violations  # noqa: E402

G = torch.Generator().manual_seed(0)
IMAGES = torch.rand(300, 1, 8, 8, generator=G)
RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return residual(tmp_path_factory.mktemp("float") / "net.onnx")


@pytest.mark.parametrize(
    "form, activations, per_channel",
    [("QDQ", "QUInt8", False), ("QDQ", "QInt8", True), ("QOperator", "QUInt8", True), ("QOperator", "QInt8", False)],
)
def test_a_quantised_network_gives_the_bits_of_onnxruntime(form, activations, per_channel, source, tmp_path):
    path = quantised(source, tmp_path / "q.onnx", IMAGES[:100], form=form, activations=activations, per_channel=per_channel)
    model, want = ns.load_model(path), reference(path, IMAGES)
    assert torch.equal(model(IMAGES), want)
    assert torch.equal(torch.cat([model(part) for part in IMAGES.split(7)]), want), "its sums may not depend on the batch"
    assert not torch.allclose(ns.load_model(source)(IMAGES), want, atol=1e-4), "nothing was rounded"
    assert sorted(p.dim() for p in model.parameters())[-3:] == [2, 4, 4], "the weights are parameters"


def words(*shape, low=-128, high=127, kind=np.int8):
    return RNG.integers(low, high, shape, endpoint=True).astype(kind)


U8, I8, F = np.uint8, np.int8, np.float32
B4, B5 = (words(n, low=-500, high=500, kind=np.int32) for n in (4, 5))
ODD, EACH = {"pads": [1, 0, 0, 1], "strides": [1, 2]}, RNG.random(4).astype(F) / 50
X, Y = ("x", F(0.02), U8(120)), (F(0.03), U8(100))
OTHER = (words(4, 6, low=0, high=255, kind=U8), F(0.013), U8(7))
# operator and attributes; inputs, of which "x" is the signal in words of 8 bits; the shape of x
ONE = {
    "QLinearConv": (ODD, [*X, words(4, 3, 3, 3), F(0.01), I8(0), *Y, B4], (3, 6, 6)),
    "QLinearConv of channels": ({"dilations": [2, 1]}, [*X, words(4, 3, 2, 3), EACH, np.zeros(4, I8), *Y], (3, 6, 6)),
    "QLinearConv of groups": ({"group": 3}, [*X, words(6, 1, 3, 3, low=0, high=255, kind=U8), F(0.004), U8(99), *Y], (3, 6, 6)),
    "QLinearConv of sequences": ({"strides": [2]}, [*X, words(4, 3, 3), F(0.01), I8(0), *Y], (3, 9)),
    "QLinearMatMul": ({}, [*X, words(6, 5), F(0.01), I8(0), *Y], (6,)),
    "QLinearMatMul of unsigned words": ({}, [*X, words(6, 5, low=0, high=255, kind=U8), F(0.01), U8(77), *Y], (4, 6)),
    "QGemm": ({"transB": 1}, [*X, words(5, 6), F(0.01), I8(0), B5, *Y], (6,)),
    "QGemm to real numbers": ({}, [*X, words(6, 5), F(0.01), I8(0), B5], (6,)),
    "QLinearAdd": ({}, [*X, *OTHER, *Y], (4, 6)),
    "QLinearAdd of words first": ({}, [*OTHER, *X, *Y], (4, 6)),
    "QLinearConcat": ({"axis": 1}, [*Y, *X, "x", F(0.013), U8(7), "x", *Y], (3, 6, 6)),
    "QLinearGlobalAveragePool": ({}, [*X, F(0.0123), U8(100)], (3, 5, 7)),
    "MatMulInteger": ({}, ["x", words(6, 5), U8(120), I8(0)], (6,)),
    "ConvInteger": ({"pads": [1, 1, 1, 1]}, ["x", words(4, 3, 3, 3), U8(120)], (3, 6, 6)),
}
REAL = {"QGemm to real numbers"}


@pytest.mark.parametrize("name", ONE)
def test_an_operator_on_whole_numbers_gives_the_bits_of_onnxruntime(name, tmp_path):
    (attributes, inputs, shape), op = ONE[name], name.split()[0]
    constants = {"s": F(0.02), "z": U8(120), "t": F(0.03), "o": U8(100)}
    constants |= {f"c{i}": v for i, v in enumerate(inputs) if not isinstance(v, str)}
    called = ["q" if isinstance(v, str) else f"c{i}" for i, v in enumerate(inputs)]
    domain = "com.microsoft" if op in CONTRIBUTED else ""
    last = N(op, called, ["y" if name in REAL else "r"], domain=domain, **attributes)
    nodes = [N("QuantizeLinear", ["x", "s", "z"], ["q"]), last]
    if op.endswith("Integer"):
        nodes.append(N("Cast", ["r"], ["y"], to=TensorProto.FLOAT))
    elif name not in REAL:
        nodes.append(N("DequantizeLinear", ["r", "t", "o"], ["y"]))
    path = written(tmp_path / "net.onnx", nodes, constants, shape)
    x = 6 * torch.rand(200, *shape, generator=G) - 3
    want = reference(path, x)
    assert torch.equal(ns.load_model(path)(x).reshape(want.shape), want)
    assert len(want.unique()) > 20, "a result of a few numbers shows little"


def test_int4_blocks_channels_and_16_bits(tmp_path):
    scales = RNG.random((5, 3)).astype(np.float32) + 0.1
    constants = {
        "W": helper.make_tensor("W", TensorProto.INT4, [5, 6], RNG.integers(-8, 7, 30).tolist()), "sW": scales,
        "s": np.array([0.001, 0.002, 0.0007, 0.003, 0.1, 2.0], np.float32), "z": np.array([0, 5, -9, 100, 3, 0], np.int16),
    }  # fmt: skip
    nodes = [
        N("QuantizeLinear", ["x", "s", "z"], ["q"], axis=-1), N("DequantizeLinear", ["q", "s", "z"], ["d"], axis=-1),
        N("DequantizeLinear", ["W", "sW"], ["w"], axis=1, block_size=2), N("Gemm", ["d", "w"], ["y"], transB=1),
    ]  # fmt: skip
    path = written(tmp_path / "net.onnx", nodes, constants, (6,), opset=21)
    x = 4 * torch.rand(50, 6, generator=G) - 2
    model = ns.load_model(path)
    torch.testing.assert_close(model(x), reference(path, x), rtol=1e-6, atol=1e-6)  # a sum in float32
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {"W": (5, 6)}


def test_words_with_two_scales_are_two_weights(tmp_path):
    constants = {"W": np.array([[1, 2], [3, -4]], I8), "a": F(0.5), "b": F(0.25)}
    nodes = [N("DequantizeLinear", ["W", k], [f"W{k}"]) for k in "ab"]
    nodes += [N("Gemm", ["x", "Wa"], ["h"], transB=1), N("Gemm", ["h", "Wb"], ["y"], transB=1)]
    path, x = written(tmp_path / "net.onnx", nodes, constants, (2,)), torch.rand(5, 2, generator=G)
    model = ns.load_model(path)
    assert torch.equal(model(x), reference(path, x)) and len(list(model.parameters())) == 2


def there_and_back(*by):
    return [N("QuantizeLinear", ["x", *by], ["q"], name="q1"), N("DequantizeLinear", ["q", *by], ["y"])]


DYNAMIC = [N("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="d1"), N("DequantizeLinear", ["q", "s", "z"], ["y"])]
FP8 = helper.make_tensor("f", TensorProto.FLOAT8E4M3FN, [], [0.0])
REFUSED = {
    "dynamic": (DYNAMIC, {}, "DynamicQuantizeLinear at node 'd1'.*static ranges"),
    "of 8-bit floats": (there_and_back("s", "f"), {"s": F(1), "f": FP8}, "QuantizeLinear at node 'q1'.*float8e4m3fn"),
    "without a step": (there_and_back("s"), {"s": F(0)}, "q1.*not above 0"),
    "of another kind": (
        [N("QLinearSigmoid", ["x", "s", "", "s"], ["y"], name="s1", domain="com.microsoft")], {"s": F(1)},
        "QLinearSigmoid at node 's1'.*com.microsoft",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name, tmp_path):
    nodes, constants, said = REFUSED[name]
    path = written(tmp_path / "net.onnx", nodes, constants, (4,), opset=19)
    with pytest.raises(ns.UnsupportedModel, match=said):
        ns.load_model(path)


# --- rounding -----------------------------------------------------------------------------------------------------------------


def test_rounding_is_exact_and_passes_its_gradient_straight_through():
    z = torch.cat([torch.arange(-40, 40) / 2, 300 * torch.randn(1000, generator=G), torch.tensor([0.49999997, 2**23 + 1.0])])
    z = z.requires_grad_()
    r = rounded(z)
    assert torch.equal(r, z.detach().round())
    r.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))
    with unrounded():
        assert torch.equal(rounded(z), z)


class Faked(torch.nn.Module):
    """Quantised activations as torch writes them while a network is trained."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
        self.register_buffer("steps", torch.tensor([0.1, 0.2, 0.3, 0.15, 0.05]))

    def forward(self, x):
        x = torch.fake_quantize_per_tensor_affine(x, 0.25, 3, 0, 15)
        h = torch.fake_quantize_per_channel_affine(self.a(x), self.steps, torch.zeros(5, dtype=torch.int32), 1, -8, 7)
        return self.b(torch.relu(h))


def test_fake_quantised_layers_of_torch_are_bounded():
    torch.manual_seed(0)
    model = Faked().eval()
    graph, x = trace_graph(model, (4,)), torch.randn(200, 4, generator=G)
    same = (graph(x) - model(x)).abs().amax(1) < 1e-5
    assert same.float().mean() > 0.97, "torch multiplies by 1 / step: a tie may go the other way"
    y = model(x).argmax(1)
    lower = ns.certify(model, x, y, ns.JointBall(0.0, 0.0, domain=None), bound="interval").margins
    m = (model(x).gather(1, y[:, None]) - model(x)).double()
    assert (lower <= m + 1e-5).all() and (lower >= m - 1e-5).float().mean() > 0.95, (
        "at radius 0 a bound is the margin, but at a tie"
    )


@pytest.mark.parametrize("form, seed", [*itertools.product(("QDQ", "QOperator"), range(4))])
def test_no_bound_lies_above_brute_force(form, seed, tmp_path):
    """Inputs at a grid of their box that is finer than the steps, and weights in theirs: of the file as it is executed."""
    x = torch.rand(40, 2, generator=torch.Generator().manual_seed(seed))
    path = quantised(dense(tmp_path / "f.onnx", (2, 4, 3), seed), tmp_path / "q.onnx", x, form=form, per_channel=seed % 2 == 1)
    model = precise(network_of(ns.load_model(path)), torch.float64)
    x, y = x[:3].double(), torch.tensor([0, 1, 2])
    for eps_x, eps_w in ((0.0, 0.0), (0.02, 0.0), (0.05, 0.01)):
        ball = ns.JointBall(eps_x, eps_w, domain=(0.0, 1.0))
        where = Region(trace_graph(model, (2,)), ball.input_box(x), network_of(model).weight_boxes(ball))
        bounds = all_bounds(where, y) | {"branch-and-bound": branched(model, where, y)}
        reached = lowest_found(model, where, y, seed=seed)
        ends = [torch.linspace(0, 1, 60, dtype=torch.float64)] * 2
        grid = torch.cartesian_prod(*ends)[:, None]
        logits = model(torch.lerp(where.x.lo, where.x.hi, grid).reshape(-1, 2)).view(3600, 3, 3)
        m = logits.gather(2, y.view(1, 3, 1).expand(3600, -1, 1)) - logits
        assert violations(torch.minimum(reached, m.amin(0)), bounds) == []
        if eps_x == eps_w == 0:
            assert (bounds["interval"] >= reached - 1e-9).all(), "no tie is near: bounds are the margins"


def test_an_attack_ends_where_onnxruntime_agrees(tmp_path):
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(5))
    path = quantised(dense(tmp_path / "f.onnx", (6, 16, 3)), tmp_path / "q.onnx", x, form="QOperator")
    model = ns.load_model(path)
    y = reference(path, x).argmax(1)
    ball = ns.JointBall(0.15, 0.0, domain=(0.0, 1.0))
    found = ns.strongest(model, x, y, ball, scope="sample")
    lost = model(found.x).argmax(1) != y
    random = (x + 0.15 * (2 * torch.rand(20, 60, 6, generator=G) - 1)).clamp(0, 1)
    by_chance = torch.stack([model(part).argmax(1) != y for part in random]).any(0)
    assert torch.equal(reference(path, found.x).argmax(1) != y, lost), "the verdict is that of the integers"
    assert lost.sum() >= by_chance.sum() and lost.any(), "gradients pass the rounding"
    proven = ns.certify(model, x, y, ball, bound="crown").verified
    assert not (proven & lost).any()
    assert ns.certify(model, x, y, ns.JointBall(0.01, 0.001), bound="crown", deployed="float32").accuracy > 0.3
