"""ONNX files: every operator against onnxruntime, whole networks with attacks and bounds, and errors that name the operator."""

import contextlib
import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.graph import dense_chain, trace_graph
from nonsingular.models import conv, mlp, resnet

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nonsingular.onnx_graph import load_onnx  # noqa: E402

RNG = np.random.default_rng(0)
SHAPE = (3, 6, 6)
N = helper.make_node


def f(*shape):
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def save(path, nodes, constants, *, batch="N", shape=SHAPE, out=None, opset=17, kind=TensorProto.FLOAT, inputs=("x",)):
    """An ONNX file of these nodes, from x to y."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, *([None] * (out or 1))])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, kind, [batch, *shape]) for n in inputs], [y],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def reference(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def close(path, x):
    model = load_onnx(path)
    torch.testing.assert_close(model(x).detach(), reference(path, x), rtol=1e-4, atol=1e-5)
    return model


X = torch.from_numpy(RNG.random((5, *SHAPE)).astype(np.float32)) - 0.4

# operator and its attributes, more inputs, opset -> the file computes it from x
ONE = {
    "Relu": ({}, [], 17), "Sigmoid": ({}, [], 17), "Tanh": ({}, [], 17), "Softsign": ({}, [], 17), "Softplus": ({}, [], 17),
    "HardSwish": ({}, [], 17), "Abs": ({}, [], 17), "Neg": ({}, [], 17), "Erf": ({}, [], 17), "Identity": ({}, [], 17),
    "Elu": ({"alpha": 0.7}, [], 17), "Celu": ({"alpha": 0.7}, [], 17), "LeakyRelu": ({"alpha": 0.2}, [], 17),
    "LeakyRelu default": ({}, [], 17), "HardSigmoid": ({}, [], 17), "HardSigmoid as torch's": ({"alpha": 1 / 6}, [], 17),
    "Gelu": ({}, [], 20), "Gelu tanh": ({"approximate": "tanh"}, [], 20), "Clip": ({}, [np.float32(-0.1), np.float32(0.3)], 17),
    "Clip below": ({}, [np.float32(0.1)], 17), "Clip at 0": ({}, [np.float32(0)], 17),
    "Clip by attributes": ({"max": 0.2}, [], 10),
    "Clip not at all": ({}, [], 17), "PRelu": ({}, [f(3, 1, 1)], 17), "PRelu one": ({}, [f(1)], 17), "Dropout": ({}, [], 17),
    "Conv": ({"pads": [1, 0, 1, 0], "strides": [2, 1]}, [f(4, 3, 3, 3), f(4)], 17),
    "Conv one-sided": ({"pads": [0, 1, 1, 0], "dilations": [2, 1]}, [f(4, 3, 2, 3)], 17),
    "Conv grouped": ({"group": 3}, [f(6, 1, 3, 3), f(6)], 17),
    "Conv same": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [f(4, 3, 2, 4)], 17),
    "Conv same lower": ({"auto_pad": "SAME_LOWER"}, [f(4, 3, 2, 4)], 17),
    "Conv valid": ({"auto_pad": "VALID"}, [f(4, 3, 2, 4)], 17),
    "ConvTranspose": ({"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, [f(3, 2, 3, 3), f(2)], 17),
    "ConvTranspose grouped": ({"group": 3}, [f(3, 2, 3, 3)], 17),
    "BatchNormalization": ({"epsilon": 1e-3}, [f(3), f(3), f(3), np.abs(f(3)) + 0.1], 17),
    "MaxPool": ({"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}, [], 17),
    "MaxPool ceil": ({"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [], 17),
    "MaxPool without strides": ({"kernel_shape": [2, 2], "dilations": [2, 1]}, [], 17),
    "AveragePool": ({"kernel_shape": [2, 2], "strides": [2, 2]}, [], 17),
    "AveragePool padded": ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, [], 17),
    "AveragePool counted": ({"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1}, [], 17),
    "GlobalAveragePool": ({}, [], 17), "GlobalMaxPool": ({}, [], 17), "Flatten": ({}, [], 17),
    "Reshape": ({}, [np.array([0, 6, -1])], 17), "Reshape flat": ({}, [np.array([-1, 108])], 17),
    "Reshape kept": ({}, [np.array([0, -1])], 17), "Transpose": ({"perm": [0, 2, 3, 1]}, [], 17),
    "Unsqueeze": ({}, [np.array([2, -1])], 17), "Unsqueeze by attribute": ({"axes": [1]}, [], 11),
    "ReduceMean": ({"axes": [2, 3], "keepdims": 0}, [], 17), "ReduceMean by input": ({"keepdims": 1}, [np.array([-1])], 18),
    "ReduceSum": ({}, [np.array([1])], 17), "ReduceMax": ({"axes": [1]}, [], 17),
    "Pad": ({}, [np.array([0, 0, 1, 0, 0, 0, 2, 1])], 17),
    "Pad with a number": ({}, [np.array([0, 0, 1, 0, 0, 0, 0, 1]), np.float32(0.5)], 17),
    "Pad reflected": ({"mode": "reflect"}, [np.array([0, 0, 1, 1, 0, 0, 1, 1])], 17), "Pad nothing": ({}, [np.zeros(8, int)], 17),
    "Add": ({}, [f(3, 1, 1)], 17), "Sub": ({}, [f(1)], 17), "Mul": ({}, [f(3, 6, 6)], 17), "Div": ({}, [np.float32(0.3)], 17),
    "Max": ({}, [f(3, 1, 1)], 17), "Min": ({}, [f(1)], 17), "Cast": ({"to": TensorProto.FLOAT}, [], 17),
    "Softmax": ({"axis": -1}, [], 17),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_an_operator_gives_what_onnxruntime_gives(name, tmp_path):
    attributes, more, opset = ONE[name]
    inputs = ["x", *(f"c{i}" for i in range(len(more)))]
    nodes = [N(name.split()[0], inputs, ["z"], **attributes), N("Identity", ["z"], ["y"])]
    constants = {f"c{i}": v for i, v in enumerate(more)}
    rank = {"Reshape": 3, "Reshape flat": 2, "Reshape kept": 2, "Flatten": 2, "Unsqueeze": 6, "Unsqueeze by attribute": 5}.get(
        name, 4
    )
    rank = 2 if attributes.get("keepdims") == 0 else rank
    close(save(tmp_path / "m.onnx", nodes, constants, out=rank - 1, opset=opset), X)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bias", ["vector", "row", "number", None])
def test_gemm_and_matmul_are_linear_layers(turned, bias, tmp_path):
    W, b = f(108, 4), {"vector": f(4), "row": f(1, 4), "number": f(1), None: None}[bias]
    flat = N("Flatten", ["x"], ["f"])
    gemm = N("Gemm", ["f", "W", *(["b"] if bias else [])], ["y"], transB=int(turned), alpha=0.5, beta=2.0)
    constants = {"W": W.T.copy() if turned else W} | ({"b": b} if bias else {})
    model = close(save(tmp_path / "g.onnx", [flat, gemm], constants), X)
    assert dict(model.named_parameters())["W"].shape == (4, 108)
    assert dense_chain(model).weight_names == ("W",)
    if bias in ("vector", "row") and not turned:
        nodes = [flat, N("MatMul", ["f", "W"], ["m"]), N("Add", ["b", "m"], ["y"])]
        model = close(save(tmp_path / "m.onnx", nodes, constants), X)
        assert {n: p.shape for n, p in model.named_parameters()} == {"W": (4, 108), "b": (4,)}


def test_what_is_added_to_two_things_is_no_bias(tmp_path):
    """The sum before the addition is used again."""
    nodes = [N("Flatten", ["x"], ["f"]), N("MatMul", ["f", "W"], ["m"]), N("Add", ["m", "b"], ["a"]), N("Add", ["a", "m"], ["y"])]
    model = close(save(tmp_path / "m.onnx", nodes, {"W": f(108, 4), "b": f(4)}), X)
    assert [n for n, _ in model.named_parameters()] == ["W"]


def test_a_convolutions_bias_may_come_after_it(tmp_path):
    nodes = [N("Conv", ["x", "K"], ["c"]), N("Add", ["c", "b"], ["y"])]
    model = close(save(tmp_path / "m.onnx", nodes, {"K": f(4, 3, 3, 3), "b": f(1, 4, 1, 1)}, out=3), X)
    assert {n: p.shape for n, p in model.named_parameters()} == {"K": (4, 3, 3, 3), "b": (4,)}


def test_weights_that_are_used_twice_are_one_parameter(tmp_path):
    nodes = [
        N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "A"], ["a"]), N("Gemm", ["a", "W"], ["b"], transB=1), N("Relu", ["b"], ["c"]),
        N("Identity", ["W"], ["W2"]), N("Transpose", ["W2"], ["W3"], perm=[1, 0]), N("MatMul", ["c", "W3"], ["y"]),
    ]  # fmt: skip
    model = close(save(tmp_path / "m.onnx", nodes, {"A": f(108, 4), "W": f(4, 4)}), X)
    assert [n for n, _ in model.named_parameters()] == ["A", "W"]


def test_normalisation_and_statistics_are_buffers_and_do_not_move(tmp_path):
    nodes = [
        N("Sub", ["x", "mean"], ["a"]), N("Div", ["a", "std"], ["b"]), N("Conv", ["b", "K"], ["c"]),
        N("BatchNormalization", ["c", "scale", "shift", "m", "v"], ["d"]), N("GlobalAveragePool", ["d"], ["e"]),
        N("Flatten", ["e"], ["y"]),
    ]  # fmt: skip
    constants = {"mean": f(3, 1, 1), "std": np.abs(f(3, 1, 1)) + 0.1, "K": f(4, 3, 3, 3), "scale": f(4), "shift": f(4), "m": f(4),
                 "v": np.abs(f(4)) + 0.1}  # fmt: skip
    model = close(save(tmp_path / "m.onnx", nodes, constants), X)
    assert {n for n, _ in model.named_parameters()} == {"K", "scale", "shift"}
    assert {n for n, _ in model.named_buffers()} == {"mean", "std", "m", "v"}


NAMES = [
    "0.weight",
    "fc1.weight",
    "training",
    "a.b.c",
    "a.b",
    "1/MatMul:0",
    "weights",
    "forward",
    "x.1.2",
    "naïve",
    "_modules.w",
    "/",
    ".w.",
]


def test_names_are_made_legal_and_stay_apart(tmp_path):
    nodes, last = [N("Flatten", ["x"], ["h0"])], 108
    constants = {}
    for i, name in enumerate(NAMES):
        constants[name] = f(last, 4)
        nodes.append(N("MatMul", [f"h{i}", name], [f"h{i + 1}"]))
        last = 4
    nodes[-1].output[0] = "y"
    model = close(save(tmp_path / "m.onnx", nodes, constants), X)
    found = [n for n, _ in model.named_parameters()]
    assert len(found) == len(NAMES)
    assert {"0.weight", "fc1.weight", "a.b.c"} <= set(found)
    assert trace_graph(model, SHAPE)(X).shape == (5, 4)


# --- whole networks -----------------------------------------------------------------------------------------------------------


class Viewed(nn.Module):
    """Its sizes are computed in the graph."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Conv2d(3, 4, 3), nn.Linear(64, 5)

    def forward(self, x):
        y = nn.functional.silu(self.body(x))
        return self.last(y.view(y.size(0), -1).unsqueeze(1).squeeze(1))


def make(name):
    torch.manual_seed(0)
    nets = {
        "mlp": lambda: mlp(SHAPE, 5, hidden=(8,), bias=True), "conv": lambda: conv(SHAPE, 5, hidden=(4,)),
        "resnet": lambda: resnet(SHAPE, 5, hidden=(4, 6)), "viewed": Viewed,
        "normalised": lambda: ns.Normalized(mlp(SHAPE, 5, hidden=(8,), bias=True), [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]),
    }  # fmt: skip
    return nets[name]().eval()


def export(model, path, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (X[:2],), str(path), input_names=["x"], output_names=["y"], dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"x": {0: "N"}} if batch == "any" else None,
        )  # fmt: skip
    return path


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet", "viewed", "normalised"])
@pytest.mark.parametrize("batch", ["any", "two"])
def test_an_exported_network_is_the_network(name, batch, tmp_path):
    """With its parameters, gradients, attacks and bounds; for every batch size, whatever the file was exported with."""
    model = make(name)
    path = export(model, tmp_path / "m.onnx", batch)
    found = close(path, X if batch == "any" else X[:2])
    torch.testing.assert_close(found(X), model(X))
    whole = name != "resnet"  # the exporter folds BatchNorm into the weights before it
    if whole:
        assert sorted(p.numel() for p in found.parameters()) == sorted(p.numel() for p in model.parameters())
    y, ball = model(X).argmax(1), ns.JointBall(0.01, 0.003 * whole, domain=None)
    want = ns.certify(model, X, y, ball).margins
    torch.testing.assert_close(ns.certify(found, X, y, ball).margins, want, rtol=1e-4, atol=1e-4)
    surfaces = [
        ns.evaluate(m, (X, y), eps_x=[0, 0.2], eps_w=[0, 0.05][: 1 + whole], domain=None).accuracy.tolist()
        for m in (model, found)
    ]
    assert surfaces[0] == surfaces[1]
    if name in ("mlp", "normalised"):
        assert len(dense_chain(found).weights) == 2


def test_a_softmax_at_the_end_is_left_out_and_named(tmp_path, caplog):
    nodes = [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "W"], ["z"]), N("Softmax", ["z"], ["y"], name="probabilities")]
    path = save(tmp_path / "m.onnx", nodes, {"W": f(108, 4)})
    with caplog.at_level(logging.INFO, "nonsingular"):
        model = load_onnx(path)
    assert "Softmax 'probabilities'" in caplog.text
    torch.testing.assert_close(model(X).softmax(1).detach(), reference(path, X))


def test_random_graphs_of_known_operators(tmp_path):
    """Thirty chains of five operators, drawn from the table of single ones."""
    chosen = [n for n in ONE if n.split()[0] not in ("Flatten", "Reshape", "Unsqueeze", "Softmax", "Gelu", "Identity")
              and ONE[n][2] == 17 and ONE[n][0].get("keepdims") != 0 and n not in ("ReduceSum", "ReduceMax")]  # fmt: skip
    rng = np.random.default_rng(5)
    done = 0
    while done < 30:
        nodes, constants, now = [], {}, "x"
        for i in range(5):
            name = chosen[rng.integers(len(chosen))]
            attributes, more, _ = ONE[name]
            names = [f"c{i}_{j}" for j in range(len(more))]
            constants |= dict(zip(names, more, strict=True))
            nodes.append(N(name.split()[0], [now, *names], [now := f"h{i}" if i < 4 else "y"], **attributes))
        path = save(tmp_path / "m.onnx", nodes, constants, out=3)
        try:
            reference(path, X)
        except Exception:  # shapes that do not follow each other
            continue
        try:
            close(path, X)
            done += 1
        except RuntimeError as e:  # onnxruntime rounds the number of windows up to 1 where none fits
            if "too small" not in str(e):
                raise


# --- errors -------------------------------------------------------------------------------------------------------------------

FLAT = N("Flatten", ["x"], ["f"])
ERRORS = {
    "an operator without a rule": ([N("Sin", ["x"], ["y"], name="wave")], {}, {}, "Sin at node 'wave'"),
    "an operator without a name": ([N("Sin", ["x"], ["y"])], {}, {}, "Sin at node 'y'"),
    "its output first": ([FLAT, N("TopK", ["f", "k"], ["y", "i"])], {"k": np.array([2])}, {}, "TopK"),
    "the batch as a dimension": ([N("ReduceMean", ["x"], ["y"])], {}, {}, "batch too"),
    "a second axis": ([N("Flatten", ["x"], ["y"], axis=2)], {}, {}, "axis is 2"),
    "a matrix that is computed": ([FLAT, N("MatMul", ["f", "f"], ["y"])], {}, {}, "constant matrix"),
    "one-sided pooling": ([N("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[1, 0, 0, 0])], {}, {}, "differ"),
    "whole numbers": ([N("Cast", ["x"], ["i"], to=TensorProto.INT64), N("Cast", ["i"], ["y"], to=1)], {}, {}, "whole numbers"),
    "training": (
        [N("BatchNormalization", ["x", "a", "a", "a", "a"], ["y", "m", "v"], training_mode=1)], {"a": np.abs(f(3))}, {"out": 3},
        "training mode",
    ),
    "dropout that is on": (
        [N("Dropout", ["x", "r", "t"], ["y"])], {"r": np.float32(0.5), "t": np.array(True)}, {"out": 3}, "training mode",
    ),
    "two inputs": ([N("Add", ["x", "x2"], ["y"])], {}, {"inputs": ("x", "x2"), "out": 3}, "2 inputs (x, x2)"),
    "words": ([N("Cast", ["x"], ["y"], to=1)], {}, {"kind": TensorProto.INT64, "out": 3}, "int64 inputs"),
    "nothing of the input": ([N("Identity", ["W"], ["y"])], {"W": f(5, 4)}, {}, "does not depend on its input"),
    "a size of the input computed": (
        [N("Shape", ["x"], ["s"]), N("Gather", ["s", "i"], ["n"]), N("Mul", ["n", "two"], ["m"]),
         N("Unsqueeze", ["m", "i1"], ["m1"]),
         N("Concat", ["m1", "rest"], ["t"], axis=0), N("Reshape", ["x", "t"], ["y"])],
        {"i": np.array(0), "two": np.array(2), "i1": np.array([0]), "rest": np.array([-1])}, {}, "sizes of the input",
    ),
    "quantised": (
        [N("QuantizeLinear", ["x", "s", "z"], ["q"], name="q1"), N("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"s": np.float32(0.1), "z": np.uint8(3)}, {"out": 3}, "QuantizeLinear at node 'q1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_not_known_is_named(name, tmp_path):
    nodes, constants, more, said = ERRORS[name]
    path = save(tmp_path / "m.onnx", nodes, constants, **more)
    with pytest.raises(ns.InvalidInput) as e:
        load_onnx(path)
    assert said in str(e.value)
    assert str(path) in str(e.value)


def test_two_outputs_are_refused(tmp_path):
    path = save(tmp_path / "m.onnx", [FLAT, N("Gemm", ["f", "W"], ["y"])], {"W": f(108, 4)})
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 108]))
    onnx.save(model, path)
    with pytest.raises(ns.InvalidInput, match=r"2 outputs \(y, f\)"):
        load_onnx(path)


def test_another_domain_is_refused(tmp_path):
    graph = helper.make_graph(
        [N("Fancy", ["x"], ["y"], domain="com.example")], "g", [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ns.UnsupportedModel, match=r"Fancy.*com\.example"):
        load_onnx(tmp_path / "m.onnx")


def test_functions_of_the_file_are_unfolded(tmp_path):
    """As new exporters of torch write them."""
    body = helper.make_function(
        "local", "Twice", ["a"], ["b"], [N("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )  # fmt: skip
    graph = helper.make_graph(
        [FLAT, N("Twice", ["f"], ["t"], domain="local"), N("Gemm", ["t", "W"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, ["N", *SHAPE])], [helper.make_tensor_value_info("y", 1, ["N", 4])],
        [numpy_helper.from_array(f(108, 4), "W")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=8), tmp_path / "m.onnx")
    close(tmp_path / "m.onnx", X)


def test_weights_in_a_file_beside_it(tmp_path):
    path = save(tmp_path / "m.onnx", [FLAT, N("Gemm", ["f", "W"], ["y"])], {"W": f(108, 40)})
    want = reference(path, X)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    torch.testing.assert_close(load_onnx(path)(X).detach(), want, rtol=1e-4, atol=1e-5)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ns.InvalidInput, match="cannot be read as ONNX"):
        load_onnx(path)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    import sys

    path = save(tmp_path / "m.onnx", [FLAT, N("Gemm", ["f", "W"], ["y"])], {"W": f(108, 4)})
    for name in [n for n in sys.modules if n == "onnx" or n.startswith("onnx.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ns.InvalidInput, match=r"nonsingular\[onnx\]"):
        load_onnx(path)


def test_a_damaged_file_is_one_error(tmp_path):
    path = save(tmp_path / "m.onnx", [FLAT, N("Gemm", ["f", "W"], ["y"])], {"W": f(108, 4)})
    raw = path.read_bytes()
    for part in (10, 60, len(raw) // 2, len(raw) - 3):
        path.write_bytes(raw[:part])
        with pytest.raises(ns.InvalidInput):
            ns.load_model(path)
    rng = np.random.default_rng(0)
    for _ in range(100):
        bent = bytearray(raw)
        for at in rng.integers(0, len(raw), 3):
            bent[at if at % 2 else at % 200] = rng.integers(256)
        path.write_bytes(bytes(bent))
        with contextlib.suppress(ns.InvalidInput):  # and nothing else
            ns.load_model(path)
