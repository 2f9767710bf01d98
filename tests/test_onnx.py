"""ONNX files: every operator against onnxruntime, whole networks with attacks and bounds, and errors that name the operator."""

import contextlib
import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.models.architectures import conv, mlp, resnet
from nonsingular.network.dense import dense_chain
from nonsingular.network.graph import trace_graph

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nonsingular.models.onnx_batches import load_onnx  # noqa: E402
from onnx_models import SHAPE, N, X, close, f, reference, save  # noqa: E402


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
    model = close(save(tmp_path / "m.onnx", nodes, {"K": f(4, 3, 3, 3), "b": f(1, 4, 1, 1)}), X)
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


# --- errors -------------------------------------------------------------------------------------------------------------------

FLAT = N("Flatten", ["x"], ["f"])
ERRORS = {
    "an operator without a rule": ([N("Bernoulli", ["x"], ["y"], name="wave")], {}, {}, "Bernoulli at node 'wave'"),
    "an operator without a name": ([N("Bernoulli", ["x"], ["y"])], {}, {}, "Bernoulli at node 'y'"),
    "its output first": ([N("LayerNormalization", ["x", "s"], ["z", "y"])], {"s": f(6)}, {}, "only its first output is known"),
    "the batch as a dimension": ([N("ReduceMean", ["x"], ["y"])], {}, {}, "batch too"),
    "a second axis": ([N("Flatten", ["x"], ["y"], axis=2)], {}, {}, "has the shape (6, 36) for 2 examples"),
    "shapes that do not fit": ([FLAT, N("MatMul", ["f", "f"], ["y"])], {}, {}, "does not work on its inputs"),
    "training": (
        [N("BatchNormalization", ["x", "a", "a", "a", "a"], ["y", "m", "v"], training_mode=1)], {"a": np.abs(f(3))}, {},
        "training mode",
    ),
    "dropout that is on": (
        [N("Dropout", ["x", "r", "t"], ["y"])], {"r": np.float32(0.5), "t": np.array(True)}, {}, "training mode",
    ),
    "two inputs": ([N("Add", ["x", "x2"], ["y"])], {}, {"inputs": ("x", "x2")}, "2 inputs (x, x2)"),
    "words": ([N("Cast", ["x"], ["y"], to=1)], {}, {"kind": TensorProto.INT64}, "int64 inputs"),
    "nothing of the input": ([N("Identity", ["W"], ["y"])], {"W": f(5, 4)}, {}, "does not depend on its input"),
    "a size of the input computed": (
        [N("Shape", ["x"], ["s"]), N("Gather", ["s", "i"], ["n"]), N("Mul", ["n", "two"], ["m"]),
         N("Unsqueeze", ["m", "i1"], ["m1"]),
         N("Concat", ["m1", "rest"], ["t"], axis=0), N("Reshape", ["x", "t"], ["y"])],
        {"i": np.array(0), "two": np.array(2), "i1": np.array([0]), "rest": np.array([-1])}, {}, "for 2 examples",
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


BOMBS = {
    "a constant": [N("ConstantOfShape", ["n"], ["c"]), N("ReduceSum", ["c"], ["s"], keepdims=0), N("Add", ["x", "s"], ["y"])],
    "a range": [N("Range", ["a", "b", "a1"], ["c"]), N("ReduceSum", ["c"], ["s"], keepdims=0), N("Cast", ["s"], ["t"], to=1),
                N("Add", ["x", "t"], ["y"])],
    "doubling": [N("Tile", ["k", "m"], ["k0"]), *(N("Concat", [f"k{i}", f"k{i}"], [f"k{i + 1}"], axis=0) for i in range(14)),
                 N("ReduceSum", ["k14"], ["s"], keepdims=0), N("Add", ["x", "s"], ["y"])],
    "a resized line": [N("Resize", ["k", "", "r"], ["c"], mode="linear"), N("ReduceSum", ["c"], ["s"], keepdims=0),
                       N("Add", ["x", "s"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_do_not_fill_the_memory(name, tmp_path):
    constants = {"n": np.array([2**20, 2**20]), "a": np.int64(0), "b": np.int64(2**40), "a1": np.int64(1), "k": f(1),
    "m": np.array([2**20]),
                 "r": np.array([3e9], np.float32)}  # fmt: skip
    used = {i for n in BOMBS[name] for i in n.input}
    path = save(tmp_path / "m.onnx", BOMBS[name], {k: v for k, v in constants.items() if k in used}, opset=13)
    with pytest.raises(ns.InvalidInput, match=r"constants of far more|becomes one of"):
        load_onnx(path)


OUTSIDE = ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "link.bin", "..", "..\\secret.bin", ""]


@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_outside_the_folder_are_not_read(location, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = save(folder / "m.onnx", [FLAT, N("Gemm", ["f", "W"], ["y"])], {"W": f(108, 4)})
    model = onnx.load(path)
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ns.InvalidInput, match="outside its folder"):
        load_onnx(path)


def test_attacks_run_what_certificates_refuse_by_name(tmp_path):
    """A recurrent network whose file fixes the batch to 1."""
    nodes = [
        N("Reshape", ["x", "t"], ["r"]), N("Transpose", ["r"], ["s"], perm=[1, 0, 2]),
        N("LSTM", ["s", "W", "R"], ["", "h"], hidden_size=4), N("Squeeze", ["h", "i0"], ["q"]), N("MatMul", ["q", "V"], ["y"]),
    ]  # fmt: skip
    constants = {"t": np.array([1, 18, 6]), "W": f(1, 16, 6), "R": f(1, 16, 4), "V": f(4, 3), "i0": np.array([0])}
    model = close(save(tmp_path / "m.onnx", nodes, constants, batch=1), X)
    assert {n for n, _ in model.named_parameters()} == {"W", "R", "V"}
    y = model(X).argmax(1)
    surface = ns.evaluate(model, (X, y), eps_x=[0, 0.3], eps_w=[0, 0.3], domain=None).accuracy
    assert surface[0][0] == 1
    assert surface[1][1] < 1
    with pytest.raises(ns.UnsupportedModel, match="before it does not keep the batch as first dimension"):
        ns.certify(model, X, y, ns.JointBall(0.01, 0.0, domain=None))


@pytest.mark.parametrize("op", ["Sign", "Floor", "Cast"])
def test_certificates_refuse_what_attacks_run(op, tmp_path):
    there = [N(op, ["f"], ["g"], **({"to": TensorProto.INT64} if op == "Cast" else {})), N("Cast", ["g"], ["h"], to=1)]
    model = close(save(tmp_path / "m.onnx", [FLAT, *there, N("MatMul", ["h", "W"], ["y"])], {"W": f(108, 3)}), X)
    with pytest.raises(ns.UnsupportedModel, match=r"no rule for (to|sign|floor)"):
        ns.certify(model, X, X.new_zeros(5).long(), ns.JointBall(0.01, 0.0, domain=None))


def test_one_example_alone(tmp_path, caplog):
    """An operation over what the file takes for the only example: each is run by itself, and bounds say so."""
    nodes = [
        N("Reshape", ["x", "t"], ["v"]),
        N("MatMul", ["v", "W"], ["m"]),
        N("Softmax", ["m"], ["p"], axis=0),
        N("Add", ["m", "p"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"t": np.array([108]), "W": f(108, 4)}, batch=1)
    model = load_onnx(path)
    session = ort.InferenceSession(str(path))
    want = torch.stack([torch.from_numpy(session.run(None, {"x": x[None].numpy()})[0]) for x in X])
    torch.testing.assert_close(model(X).detach(), want, rtol=1e-4, atol=1e-5)
    nodes[2] = N("CumSum", ["m", "i0"], ["p"])
    constants = {"t": np.array([27, 4]), "W": f(4, 4), "i0": np.int64(0)}
    with caplog.at_level(logging.INFO, "nonsingular"):
        model = load_onnx(
            save(
                tmp_path / "m.onnx",
                [*nodes[:3], N("ReduceSum", ["p", "i1"], ["y"])],
                constants | {"i1": np.array([0])},
                batch=1,
                opset=13,
            )
        )
    assert "takes one example alone" in caplog.text
    assert dict(model.named_parameters()).keys() == {"W"}
    ns.evaluate(model, (X, model(X).argmax(1)), eps_x=[0, 0.1], eps_w=[0, 0.1], domain=None)
    with pytest.raises(ns.UnsupportedModel, match="does not keep the batch"):
        trace_graph(model, SHAPE)


def test_a_file_without_a_batch(tmp_path):
    """As W x of a vector; with certificates."""
    y = helper.make_tensor_value_info("y", 1, [3])
    nodes = [N("MatMul", ["W", "x"], ["a"]), N("Add", ["a", "b"], ["c"]), N("Relu", ["c"], ["d"]), N("MatMul", ["V", "d"], ["y"])]
    constants = {"W": f(6, 4), "b": f(6), "V": f(3, 6)}
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, [4])], [y],
                              [numpy_helper.from_array(v, k) for k, v in constants.items()])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    model, x = load_onnx(tmp_path / "m.onnx"), torch.rand(5, 4)
    want = torch.relu(x @ torch.tensor(constants["W"]).T + torch.tensor(constants["b"])) @ torch.tensor(constants["V"]).T
    torch.testing.assert_close(model(x).detach(), want)
    assert dense_chain(model).weight_names == ("W", "V")


def test_examples_that_mix_are_refused(tmp_path):
    nodes = [FLAT, N("Transpose", ["f"], ["t"]), N("Softmax", ["t"], ["s"], axis=-1), N("Transpose", ["s"], ["u"]),
             N("MatMul", ["u", "W"], ["y"])]  # fmt: skip
    with pytest.raises(ns.InvalidInput, match="mixes the examples"):
        load_onnx(save(tmp_path / "m.onnx", nodes, {"W": f(108, 4)}))


def test_sizes_that_a_file_leaves_open(tmp_path):
    nodes = [N("Conv", ["x", "K"], ["c"]), N("GlobalAveragePool", ["c"], ["g"]), N("Flatten", ["g"], ["y"])]
    model = close(save(tmp_path / "m.onnx", nodes, {"K": f(4, 3, 3, 3)}, shape=(3, "H", "W")), X)
    model(torch.rand(2, 3, 31, 17))
    close(save(tmp_path / "m.onnx", [N("Gemm", ["x", "W"], ["y"])], {"W": f(7, 4)}, shape=("features",)), torch.rand(5, 7))
    with pytest.raises(ns.InvalidInput, match="open sizes"):
        load_onnx(save(tmp_path / "m.onnx", [FLAT, N("Gemm", ["f", "W"], ["y"])], {"W": f(75, 4)}, shape=(3, "H", "W")))


def test_weights_of_other_kinds_of_numbers(tmp_path, caplog):
    """float16 and float64 weights become float32; where that changes the outputs of a float64 file, it says so."""
    nodes = [N("Cast", ["W"], ["V"], to=1), FLAT, N("MatMul", ["f", "V"], ["y"])]
    for kind in (np.float16, np.float64):
        close(save(tmp_path / "m.onnx", nodes, {"W": f(108, 4).astype(kind)}), X)
    tiny = np.full((108, 4), 1e-41, np.float32)  # subnormal
    torch.testing.assert_close(load_onnx(save(tmp_path / "m.onnx", nodes[1:], {"V": tiny})).V.detach(), torch.tensor(tiny.T))
    off = {"W": np.full((108, 4), 1e9), "V": np.full((108, 4), 1e9)}
    nodes = [
        FLAT,
        N("MatMul", ["f", "W"], ["a"]),
        N("MatMul", ["f", "V"], ["b"]),
        N("Add", ["a", "c"], ["a1"]),
        N("Sub", ["a1", "b"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, off | {"c": np.full(4, 3.0)}, kind=TensorProto.DOUBLE)
    with caplog.at_level(logging.WARNING, "nonsingular"):
        load_onnx(path)
    assert "is in float64" in caplog.text


def test_an_argmax_at_the_end_is_left_out(tmp_path, caplog):
    nodes = [FLAT, N("Gemm", ["f", "W"], ["z"]), N("Softmax", ["z"], ["p"]), N("ArgMax", ["p"], ["a"], axis=1, keepdims=0),
             N("Cast", ["a"], ["y"], to=1)]  # fmt: skip
    path = save(tmp_path / "m.onnx", nodes, {"W": f(108, 4)})
    with caplog.at_level(logging.INFO, "nonsingular"):
        model = load_onnx(path)
    assert "ArgMax" in caplog.text
    assert torch.equal(model(X).argmax(1).float(), reference(path, X))


def test_an_old_opset_is_converted(tmp_path):
    """Opset 6 says `broadcast` where later ones need nothing."""
    nodes = [FLAT, N("Gemm", ["f", "W", "b"], ["g"], broadcast=1), N("Mul", ["g", "c"], ["y"], broadcast=1, axis=1)]
    inputs = {"W": f(108, 4), "b": f(4), "c": f(4)}
    given = [helper.make_tensor_value_info(n, 1, v.shape) for n, v in inputs.items()]  # before IR 4 weights are inputs, too
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, [1, *SHAPE]), *given],
      [helper.make_tensor_value_info("y", 1, [1, 4])],
                              [numpy_helper.from_array(v, k) for k, v in inputs.items()])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=3), tmp_path / "m.onnx")
    want = (X.flatten(1) @ torch.tensor(inputs["W"]) + torch.tensor(inputs["b"])) * torch.tensor(inputs["c"])
    torch.testing.assert_close(load_onnx(tmp_path / "m.onnx")(X).detach(), want)


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
