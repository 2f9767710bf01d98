"""Every ONNX operator with a rule, by itself, against onnxruntime: with any batch, and in a file that fixes the batch to 1."""

import numpy as np
import pytest
import torch

import nonsingular as ns

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nonsingular.models.onnx_rules import RULES  # noqa: E402
from nonsingular.models.onnx_rules.quantised import QUANTISED  # noqa: E402
from onnx_models import N, X, close, f, reference, save  # noqa: E402

I = lambda *v: np.array(v, np.int64)  # noqa: E731, E741
S = lambda *v: np.array(v, np.float32)  # noqa: E731
NONE = None
"""An input that is left out."""

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
    **{op: ({}, [], 17) for op in (
        "Exp", "Sign", "Ceil", "Floor", "Round", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Selu",
        "ThresholdedRelu", "Shrink", "IsNaN", "IsInf", "Reciprocal", "LogSoftmax", "Hardmax",
    )},
    "Mish": ({}, [], 18), "Selu of its own": ({"alpha": 1.1, "gamma": 0.9}, [], 17),
    "Shrink soft": ({"bias": 0.1, "lambd": 0.2}, [], 17),
    "ThresholdedRelu at 0.1": ({"alpha": 0.1}, [], 17), "IsInf below": ({"detect_positive": 0}, [], 20),
    "Softmax of old": ({"axis": 1}, [], 11), "LogSoftmax of old": ({"axis": 2}, [], 11),
    "Softmax over channels": ({"axis": 1}, [], 13),
    "Clip above": ({}, [NONE, S(0.2).reshape(())], 17),
    "PRelu of the last dimension": ({}, [f(6)], 17), "PRelu of all": ({}, [f(3, 6, 6)], 17),
    "Pow": ({}, [np.float32(2)], 17), "Pow of whole numbers": ({}, [np.int64(3)], 17),
    "Max of a number": ({}, [np.float32(0.1)], 17),
    "Min of several": ({}, [f(3, 1, 1), np.float32(0.2), f(6)], 17), "Max alone": ({}, [], 17),
    "Mean": ({}, [f(6), f(3, 1, 1)], 17),
    "Sum": ({}, [f(6), f(3, 1, 1)], 17), "Mod": ({"fmod": 1}, [S(0.3)], 17),
    "Mod of a number": ({"fmod": 1}, [np.float32(0.3)], 17),
    "Equal": ({}, [np.float32(0.1)], 17), "Greater": ({}, [f(6)], 17), "Less": ({}, [np.float32(0.1)], 17),
    "GreaterOrEqual": ({}, [f(6)], 17), "LessOrEqual": ({}, [f(6)], 17),
    "Cast to whole numbers": ({"to": TensorProto.INT32}, [], 17), "Cast to truth": ({"to": TensorProto.BOOL}, [], 17),
    "RMSNormalization": ({"axis": -2}, [f(6, 6)], 23), "Swish": ({"alpha": 1.5}, [], 24),
    "CastLike": ({}, [S(1)], 17), "CumSum": ({}, [np.int64(2)], 17),
    "CumSum exclusive": ({"exclusive": 1, "reverse": 1}, [I(-1)], 17),
    **{f"{op} {k}": (a, [], 13) for op in (
        "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp",
    ) for k, a in {"dropped": {"axes": [1, -1], "keepdims": 0}, "kept": {"axes": [2]}}.items()},
    "ReduceSum by input": ({"keepdims": 0}, [I(1, 3)], 13), "ReduceSum of nothing": ({"noop_with_empty_axes": 1}, [I()], 13),
    "ReduceMax by input": ({}, [I(1, 3)], 18), "ReduceLogSum": ({}, [I(-1)], 18),
    "LpNormalization": ({"axis": 1}, [], 17), "LpNormalization 1": ({"p": 1}, [], 17), "LRN": ({"size": 3}, [], 17),
    "LRN of five": ({"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 1.5}, [], 17),
    "LayerNormalization": ({}, [f(6), f(6)], 17), "LayerNormalization of two": ({"axis": -2, "epsilon": 1e-3}, [f(6, 6)], 17),
    "LayerNormalization of one scale": ({}, [f(1), f(1)], 17),
    "GroupNormalization": ({"num_groups": 3}, [f(3), f(3)], 21), "InstanceNormalization": ({}, [f(3), f(3)], 17),
    "GroupNormalization of one": ({"num_groups": 1}, [f(3), f(3)], 21),
    "MatMul of three": ({}, [f(3, 6, 5)], 17), "MatMul of two": ({}, [f(6, 5)], 17), "MatMul of a vector": ({}, [f(6)], 17),
    "Einsum": ({"equation": "bchw,wk->bchk"}, [f(6, 5)], 17),
    "Squeeze": ({}, [I(1)], 17), "Slice": ({}, [I(1, -2), I(2**31 - 1, 2**63 - 1), I(1, 3)], 17),
    "Slice in steps": ({}, [I(0, 1), I(6, 6), I(-1, 2), I(2, 3)], 17),
    "Slice backwards": ({}, [I(-1, 4), I(-(2**31), 0), I(3, 2), I(-1, -2)], 17),
    "Slice of all axes": ({}, [I(0, 1, 0, 0), I(2**31, 3, 6, 5)], 17), "Slice of nothing": ({}, [I(0), I(2**31), I(1)], 17),
    "Slice by attributes": ({"starts": [1], "ends": [-1], "axes": [3]}, [], 9),
    "Slice without axes": ({"starts": [0, 1], "ends": [999, 3]}, [], 7),
    "Gather": ({"axis": 1}, [I(2, 0, -1)], 17), "Gather one": ({"axis": -1}, [np.int64(-2)], 17),
    "Gather neighbours": ({"axis": 2}, [I(1, 2, 3)], 17),
    "Gather a table": ({"axis": 3}, [I(0, 1, 5, 2).reshape(2, 2)], 17),
    "Transpose back": ({"perm": [0, 3, 2, 1]}, [], 17), "Expand": ({}, [I(2, 1, 1, 6, 1)[1:]], 17),
    "Tile": ({}, [I(1, 2, 1, 3)], 17),
    "Unsqueeze two": ({}, [I(1, 3)], 17), "Reshape split": ({}, [I(0, 3, 2, 3, -1)], 17),
    "Concat": ({"axis": 1}, [], 17), "Trilu": ({"upper": 0}, [np.int64(1)], 17), "ArgMax": ({"axis": 1}, [], 17),
    "ArgMin": ({"axis": 2, "keepdims": 0}, [], 17), "DepthToSpace": ({"blocksize": 1}, [], 17),
    "SpaceToDepth": ({"blocksize": 2}, [], 17),
    "Pad by attributes": ({"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.3}, [], 10),
    "Pad of axes": ({}, [I(1, 2), NONE, I(-1)], 18),
    "Pad at the edge": ({"mode": "edge"}, [I(0, 0, 1, 2, 0, 0, 0, 1)], 17),
    "Pad channels at the edge": ({"mode": "edge"}, [I(0, 1, 0, 0, 0, 2, 0, 0)], 17),
    "Pad wrapped": ({"mode": "wrap"}, [I(0, 0, 1, 2, 0, 0, 0, 1)], 19), "Pad less": ({}, [I(0, 0, -1, 0, 0, 0, 0, -2)], 17),
    "ConvTranspose one-sided": ({"strides": [2, 2], "pads": [0, 1, 1, 0]}, [f(3, 2, 3, 3), f(2)], 17),
    "ConvTranspose same": ({"strides": [2, 2], "auto_pad": "SAME_UPPER"}, [f(3, 2, 3, 3)], 17),
    "ConvTranspose of a size": ({"strides": [2, 2], "output_shape": [12, 13]}, [f(3, 2, 3, 3)], 17),
    "ConvTranspose dilated": ({"dilations": [2, 1]}, [f(3, 2, 3, 3)], 17),
    "MaxPool one-sided": ({"kernel_shape": [2, 3], "pads": [1, 0, 0, 2]}, [], 17),
    "MaxPool same": ({"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, [], 17),
    "AveragePool same": ({"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, [], 17),
    "AveragePool ceil": ({"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [], 19),
    "AveragePool one-sided": ({"kernel_shape": [2, 3], "pads": [1, 0, 0, 2]}, [], 17),
    "AveragePool dilated": ({"kernel_shape": [2, 2], "dilations": [2, 1]}, [], 19),
    "LpPool": ({"kernel_shape": [2, 3], "strides": [1, 2], "p": 3}, [], 18), "GlobalLpPool": ({"p": 2}, [], 17),
    "Upsample": ({"mode": "nearest"}, [S(1, 1, 2, 3)], 9), "Upsample by attribute": ({"mode": "nearest", "scales": [1.0, 1.0,
      2.0, 2.0]}, [], 7),
    "Upsample linear": ({"mode": "linear"}, [S(1, 1, 2, 2)], 9), "Upsample by 1.5": ({"mode": "nearest"}, [S(1, 1, 1.5, 1.5)], 9),
    "Resize of old": ({"mode": "linear"}, [S(1, 1, 2, 0.5)], 10),
    "Resize of axes": ({"mode": "linear", "axes": [2, 3]}, [NONE, NONE, I(9, 4)], 18),
    "Resize against aliasing": ({"mode": "linear", "antialias": 1}, [NONE, S(1, 1, 0.5, 0.6)], 18),
    **{f"Resize {mode} {way} {scale} {rounding}": (
        {"mode": mode, "coordinate_transformation_mode": way, **({"nearest_mode": rounding} if rounding else {})}, [NONE, S(1,
          1, *scale)], 13,
      ) for mode, rounding in (("nearest", "floor"), ("nearest", "ceil"), ("nearest", "round_prefer_floor"), ("linear", ""),
        ("cubic", ""))
        for way in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel") for scale in ((2, 2), (0.5, 1.7))
        if (mode, way) != ("cubic", "pytorch_half_pixel")},
}  # fmt: skip
NOT_OF_FLOATS = {"IsNaN", "IsInf", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "ArgMax", "ArgMin"}


def one(name, now="x", i=""):
    """The node of an entry, and its constants."""
    attributes, more, opset = ONE[name]
    names = ["" if v is NONE else f"c{i}_{j}" for j, v in enumerate(more)]
    constants = {n: v for n, v in zip(names, more, strict=True) if n}
    return N(name.split()[0], [now, *names], [f"z{i}"], **attributes), constants, opset


@pytest.mark.parametrize("name", ONE)
def test_an_operator_gives_what_onnxruntime_gives(name, tmp_path):
    """A file with any batch; and one for a batch of 1 alone, which is read for any."""
    node, constants, opset = one(name)
    after = [N("Cast", ["z"], ["w"], to=TensorProto.FLOAT), N("Neg", ["w"], ["y"])]
    shape, x = ((1, 6, 6), X[:, :1]) if name == "Squeeze" else ((3, 6, 6), X)
    for batch in ("N", 1):
        close(save(tmp_path / "m.onnx", [node, *after], constants, opset=opset, batch=batch, shape=shape), x)


def recurrent(op, gates, direction="forward", **attributes):
    """A recurrent layer over rows of 6 in sequences of 5, and its last state."""
    d = 2 if direction == "bidirectional" else 1
    back = N("Transpose", ["x"], ["t"], perm=[1, 0, 2]) if not attributes.get("layout") else N("Identity", ["x"], ["t"])
    nodes = [back, N(op, ["t", "W", "R", "B"], ["s", "h"], hidden_size=4, direction=direction, **attributes)]
    nodes += [N("Transpose", ["h"], ["g"], perm=[0, 1, 2] if attributes.get("layout") else [1, 0, 2]), N("Flatten", ["g"], ["y"])]
    return nodes, {"W": f(d, gates * 4, 6), "R": f(d, gates * 4, 4), "B": f(d, gates * 8)}, 17, (5, 6)


def norm(affine):
    """A layer norm as it is written before opset 17."""
    nodes = [
        N("ReduceMean", ["x"], ["m"], axes=[-1]), N("Sub", ["x", "m"], ["c"]), N("Pow", ["c", "two"], ["q"]),
        N("ReduceMean", ["q"], ["v"], axes=[-1]), N("Add", ["v", "eps"], ["w"]), N("Sqrt", ["w"], ["d"]),
        N("Div", ["c", "d"], ["n"]), N("Mul", ["n", "g"], ["o"]), N("Add", ["o", "b"], ["y"]),
    ]  # fmt: skip
    return nodes, {"two": np.float32(2), "eps": np.float32(1e-5), "g": f(6), "b": f(6)}, 13, (5, 6)


def sized(*nodes, **constants):
    """Sizes of the input: s is (batch, 5, 6), n the batch."""
    return (
        [N("Shape", ["x"], ["s"]), N("Gather", ["s", "zero"], ["n"]), *nodes],
        {"zero": np.int64(0), "i0": I(0), **constants},
        13,
        (5, 6),
    )


def attention():
    nodes = [
        N("MatMul", ["x", "Wq"], ["q"]), N("MatMul", ["x", "Wk"], ["k"]), N("MatMul", ["x", "Wv"], ["v"]),
        *(N("Reshape", [c, "heads"], [c + "h"]) for c in "qkv"), *(N("Transpose", [c + "h"], [c + "t"], perm=[0, 2, 1,
          3]) for c in "qv"),
        N("Transpose", ["kh"], ["kt"], perm=[0, 2, 3, 1]), N("MatMul", ["qt", "kt"], ["a"]), N("Div", ["a", "root"], ["b"]),
        N("Where", ["mask", "b", "low"], ["m"]), N("Softmax", ["m"], ["p"]), N("MatMul", ["p", "vt"], ["o"]),
        N("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]), N("Reshape", ["ot", "flat"], ["y"]),
    ]  # fmt: skip
    constants = {"heads": I(0, 0, 3, 2), "flat": I(0, 5, 6), "root": np.float32(2**0.5), "low": np.float32(-1e9)}
    mask = {"mask": np.tril(np.ones((5, 5), bool))}
    return nodes, constants | mask | {k: f(6, 6) for k in ("Wq", "Wk", "Wv")}, 13, (5, 6)


def branch(condition, then="Relu"):
    """An If on a constant."""

    def graph(name, node):
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, None)])

    node = N(
        "If", ["c"], ["y"], then_branch=graph("yes", N(then, ["x"], ["yes"])), else_branch=graph("no", N("Neg", ["x"], ["no"]))
    )
    return [node], {"c": np.array(condition)}, 17, (5, 6)


NETS = {
    "LSTM": recurrent("LSTM", 4), "LSTM both ways": recurrent("LSTM", 4, "bidirectional"),
    "LSTM backwards": recurrent("LSTM", 4, "reverse"),
    "LSTM clipped": recurrent("LSTM", 4, clip=0.3), "LSTM coupled": recurrent("LSTM", 4, input_forget=1),
    "LSTM of other functions": recurrent("LSTM", 4, activations=["Sigmoid", "Relu", "Softsign"]),
    "GRU": recurrent("GRU", 3), "GRU reset after": recurrent("GRU", 3, "bidirectional", linear_before_reset=1),
    "RNN": recurrent("RNN", 1), "RNN of relu": recurrent("RNN", 1, "bidirectional", activations=["Relu", "Tanh"]),
    "LSTM with its first state": (
        [N("Transpose", ["x"], ["t"], perm=[1, 0, 2]), N("Shape", ["t"], ["s"]), N("Gather", ["s", "one"], ["n"], axis=0),
         N("Concat", ["i1", "n", "i4"], ["z"], axis=0), N("ConstantOfShape", ["z"], ["h0"]),
         N("LSTM", ["t", "W", "R", "", "", "h0", "h0", "P"], ["a"], hidden_size=4), N("Squeeze", ["a", "i1"], ["q"]),
         N("Transpose", ["q"], ["y"], perm=[1, 0, 2])],
        {"one": I(1), "i1": I(1), "i4": I(4), "W": f(1, 16, 6), "R": f(1, 16, 4), "P": f(1, 12)}, 14, (5, 6),
    ),
    "layer norm written out": norm(True), "attention": attention(),
    "Flatten two": ([N("Flatten", ["x"], ["a"], axis=2), N("Neg", ["a"], ["b"]), N("Reshape", ["b", "t"], ["y"])], {"t": I(-1,
      30)}, 13, (5, 6)),
    "Split": ([N("Split", ["x", "n"], ["a", "b", "c"], axis=2), N("Mul", ["a", "c"], ["d"]), N("Add", ["d", "e"], ["y"])],
              {"n": I(2, 2, 2), "e": f(2)}, 13, (5, 6)),
    "Split in equal parts": ([N("Split", ["x"], ["a", "b"], axis=-1), N("Sub", ["b", "a"], ["y"])], {}, 11, (5, 6)),
    "Split in unequal parts": ([N("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), N("Concat", ["b", "a"], ["y"], axis=1)],
      {}, 18, (5, 6)),
    "chunk of old": ([N("SplitToSequence", ["x", "n"], ["q"], axis=2), N("SequenceAt", ["q", "i"], ["a"]), N("Neg", ["a"],
      ["y"])],
                     {"n": np.int64(4), "i": np.int64(-1)}, 13, (5, 6)),
    "a sequence joined": ([N("SplitToSequence", ["x"], ["q"], axis=2, keepdims=0), N("ConcatFromSequence", ["q"], ["y"],
      axis=1)], {}, 13, (5, 6)),
    "a sequence stacked": ([N("Neg", ["x"], ["n"]), N("SequenceConstruct", ["x", "n"], ["q"]),
                            N("ConcatFromSequence", ["q"], ["y"], axis=1, new_axis=1)], {}, 13, (5, 6)),
    "GatherElements": ([N("GatherElements", ["w", "i"], ["g"]), N("MatMul", ["x", "g"], ["y"])], {"w": f(6, 2),
    "i": I(0, 5, -1, 2).reshape(2, 2).repeat(3, 0)}, 13, (5, 6)),
    "GatherND": ([N("Transpose", ["x"], ["t"], perm=[1, 2, 0]), N("GatherND", ["t", "i"], ["g"]), N("Transpose", ["g"], ["y"])],
                 {"i": I(0, 1, 4, 5).reshape(2, 2)}, 13, (5, 6)),
    "GatherND of a batch": ([N("GatherND", ["w", "i"], ["g"], batch_dims=1), N("Add", ["x", "g"], ["y"])],
                            {"w": f(5, 6, 1), "i": I(0, 1, 2, 3, 4).reshape(5, 1)}, 13, (5, 6)),
    "ScatterND": ([N("Transpose", ["x"], ["t"], perm=[1, 2, 0]), N("Slice", ["t", "a", "b"], ["u"]), N("ScatterND", ["t", "i",
      "u"], ["v"]),
                   N("Transpose", ["v"], ["y"], perm=[2, 0, 1])], {"a": I(0), "b": I(2),
                   "i": I(3, -1).reshape(2, 1)}, 13, (5, 6)),
    "ScatterElements": ([N("ScatterElements", ["z", "i", "w"], ["k"], axis=1), N("MatMul", ["x", "k"], ["y"])],
                        {"z": f(6, 4), "w": f(6, 2), "i": np.tile(I(0, -1), (6, 1))}, 13, (5, 6)),
    "TopK": ([N("TopK", ["x", "k"], ["v", "i"]), N("Cast", ["i"], ["j"], to=1), N("Add", ["v", "j"], ["y"])], {"k": I(3)}, 13,
      (5, 6)),
    "OneHot": ([N("ArgMax", ["x"], ["i"], axis=2, keepdims=0), N("OneHot", ["i", "d", "v"], ["y"])], {"d": I(6),
    "v": S(-1, 2)}, 13, (5, 6)),
    "GridSample": ([N("GridSample", ["x", "g"], ["h"], align_corners=1), N("Neg", ["h"], ["y"])],
                   {"g": f(1, 4, 5, 2)}, 16, (3, 6, 6)),
    "the batch as a size": sized(N("Unsqueeze", ["n", "i0"], ["n1"]), N("Concat", ["n1", "rest"], ["t"], axis=0),
                                 N("Reshape", ["x", "t"], ["y"]), rest=I(-1)),
    "a size computed": sized(N("Mul", ["n", "five"], ["m"]), N("Unsqueeze", ["m", "i0"], ["m1"]), N("Concat", ["m1", "rest"],
      ["t"], axis=0),
                             N("Reshape", ["x", "t"], ["r"]), N("Relu", ["r"], ["p"]), N("Reshape", ["p", "s"], ["y"]),
                             five=np.int64(5), rest=I(6)),
    "a token before the others": sized(N("Unsqueeze", ["n", "i0"], ["n1"]), N("Concat", ["n1", "rest"], ["t"], axis=0),
                                       N("ConstantOfShape", ["t"], ["o"], value=numpy_helper.from_array(S(1))), N("Mul", ["o",
                                         "k"], ["e"]),
                                       N("Equal", ["t", "minus"], ["q"]), N("Where", ["q", "t", "t"], ["w"]), N("Expand", ["k",
                                         "w"], ["u"]),
                                       N("Concat", ["e", "x", "u"], ["y"], axis=1), rest=I(1, 6), k=f(1, 1, 6), minus=I(-1)),
    "positions": sized(N("Gather", ["s", "one"], ["l"]), N("Range", ["zero", "l", "one"], ["r"]), N("Gather", ["w", "r"], ["p"]),
                       N("Add", ["x", "p"], ["y"]), one=np.int64(1), w=f(9, 6)),
    "half of a size": sized(N("Gather", ["s", "two"], ["l"]), N("Div", ["l", "two"], ["h"]), N("Unsqueeze", ["h", "i0"], ["h1"]),
                            N("Slice", ["x", "i0", "h1", "i2"], ["y"]), two=np.int64(2), i2=I(2)),
    "the product of sizes": sized(N("Slice", ["s", "i1", "i3"], ["t"]), N("ReduceProd", ["t"], ["p"]), N("Concat", ["minus",
      "p"], ["q"], axis=0),
                                  N("Reshape", ["x", "q"], ["y"]), i1=I(1), i3=I(3), minus=I(-1)),
    "a tensor repeated over the batch": sized(N("Unsqueeze", ["n", "i0"], ["n0"]), N("Concat", ["n0", "ones"], ["t"], axis=0),
                                              N("Tile", ["k", "t"], ["u"]), N("Add", ["x", "u"], ["y"]), ones=I(1, 1), k=f(1, 5,
                                                6)),
    "the number of elements": sized(N("Size", ["x"], ["a"]), N("Div", ["a", "n"], ["b"]), N("Unsqueeze", ["b", "i0"], ["c"]),
                                    N("Unsqueeze", ["n", "i0"], ["d"]), N("Concat", ["d", "c"], ["t"], axis=0), N("Reshape",
                                      ["x", "t"], ["y"])),
    "constants that are computed": (
        [N("Range", ["a", "b", "c"], ["r"]), N("Cast", ["r"], ["q"], to=1), N("Reshape", ["q", "t"], ["w"]), N("EyeLike", ["w"],
          ["e"]),
         N("Add", ["w", "e"], ["u"]), N("NonZero", ["e"], ["z"]), N("ReduceSum", ["z"], ["k"], keepdims=0), N("Cast", ["k"],
           ["j"], to=1),
         N("MatMul", ["x", "u"], ["m"]), N("Add", ["m", "j"], ["y"])],
        {"a": np.int64(0), "b": np.int64(36), "c": np.int64(1), "t": I(6, 6)}, 13, (5, 6),
    ),
    "Scatter of old": ([N("Scatter", ["z", "i", "w"], ["k"], axis=1), N("MatMul", ["x", "k"], ["y"])],
                       {"z": f(6, 4), "w": f(6, 2), "i": np.tile(I(0, 2), (6, 1))}, 10, (5, 6)),
    "constants in nodes": ([N("Constant", [], ["a"], value_float=0.5), N("Constant", [], ["b"],
      value=numpy_helper.from_array(f(6))),
                            N("Constant", [], ["c"], value_ints=[1]), N("Unsqueeze", ["a", "c0"], ["d"]), N("Mul", ["x", "d"],
                              ["e"]),
                            N("Add", ["e", "b"], ["g"]), N("Squeeze", ["u", "c"], ["v"]), N("Add", ["g", "v"], ["y"])],
                           {"c0": I(0), "u": f(5, 1, 6)}, 13, (5, 6)),
    "logic": ([N("Greater", ["x", "z"], ["a"]), N("Less", ["x", "o"], ["b"]), N("And", ["a", "b"], ["c"]), N("Or", ["c", "t"],
      ["d"]),
               N("Xor", ["d", "a"], ["e"]), N("Not", ["e"], ["g"]), N("Where", ["g", "x", "o"], ["y"])],
              {"z": np.float32(0), "o": np.float32(0.2), "t": np.array(False)}, 13, (5, 6)),
    "a fixed batch in reshapes": ([N("Reshape", ["x", "a"], ["b"]), N("Relu", ["b"], ["c"]), N("Reshape", ["c", "d"], ["e"]),
      N("MatMul", ["e", "W"], ["y"])],
                                  {"a": I(5, 6), "d": I(1, 30), "W": f(30, 4)}, 13, (5, 6)),
    "images to a size": ([N("Resize", ["x", "", "", "n"], ["z"], mode="linear"), N("Neg", ["z"], ["y"])], {"n": I(1, 3, 9, 4)},
      13, (3, 6, 6)),
    "images cropped": ([N("Resize", ["x", "r", "", "n"], ["z"], mode="linear",
      coordinate_transformation_mode="tf_crop_and_resize"),
                        N("Neg", ["z"], ["y"])], {"r": S(0, 0, 0.2, 0.1, 1, 1, 0.9, 0.7), "n": I(1, 3, 5, 4)}, 13, (3, 6, 6)),
    "determinants": ([N("MatMul", ["t", "x"], ["a"]), N("Det", ["a"], ["b"]), N("Unsqueeze", ["b", "i1"], ["y"])], {"t": f(6,
      5), "i1": I(1)}, 13, (5, 6)),
    "one example alone": ([N("Squeeze", ["x", "i0"], ["a"]), N("Softmax", ["a"], ["b"], axis=0), N("Unsqueeze", ["b", "i0"],
      ["y"])], {"i0": I(0)}, 13, (5, 6)),
    "all of one example": ([N("ReduceMean", ["x"], ["m"]), N("Sub", ["x", "m"], ["c"]), N("Squeeze", ["c"], ["y"])], {}, 13, (5,
      6)),
    "If": branch(True), "Else": branch(False, "Tan"),
    "standardised": ([N("MeanVarianceNormalization", ["x"], ["z"], axes=[1, 2]), N("Neg", ["z"], ["y"])], {}, 13, (5, 6)),
    "Acos and others": ([N("Mul", ["x", "h"], ["a"]), N("Acos", ["a"], ["b"]), N("Asin", ["a"], ["c"]), N("Atanh", ["a"],
      ["d"]), N("Sum", ["b", "c", "d"], ["e"]),
                         N("Acosh", ["e"], ["g"]), N("Abs", ["x"], ["p"]), N("Log", ["p"], ["l"]), N("Sqrt", ["p"], ["q"]),
                           N("Sum", ["g", "l", "q"], ["y"])],
                        {"h": np.float32(0.5)}, 13, (5, 6)),
}  # fmt: skip
ONE_ALONE = {"a fixed batch in reshapes", "images to a size", "images cropped", "one example alone", "all of one example"}
"""Networks that only work on batches of 1."""
DATA = torch.from_numpy(np.random.default_rng(1).random((4, 5, 6), dtype=np.float32)) + 0.05


@pytest.mark.parametrize("name", NETS)
def test_a_network_gives_what_onnxruntime_gives(name, tmp_path):
    nodes, constants, opset, shape = NETS[name]
    x = DATA if shape == (5, 6) else X
    for batch in (1,) if name in ONE_ALONE else ("N", 1):
        model = close(
            save(tmp_path / "m.onnx", nodes, constants, opset=opset, batch=batch, shape=shape),
            x[:1] if name == "GridSample" else x,
        )
    if "LSTM" in name or "GRU" in name or "RNN" in name:
        moving = {n: p.shape for n, p in model.named_parameters()}
        assert {"W", "R"} <= set(moving)
    if name == "layer norm written out":
        assert {n for n, _ in model.named_parameters()} == {"g", "b"}


ELSEWHERE = sorted(["Gemm", *QUANTISED])
"""Rules that test_onnx.py and test_quantised.py test."""


def test_every_rule_is_tested_here_or_with_networks():
    here = {n.split()[0] for n in ONE} | {n.op_type for nodes, *_ in NETS.values() for n in nodes}
    assert sorted(set(RULES) - here) == ELSEWHERE


def test_random_graphs_of_known_operators(tmp_path):
    """Thirty chains of five operators, drawn from the table of single ones."""
    chosen = [n for n in ONE if n.split()[0] not in ("Identity", "Cast", *NOT_OF_FLOATS) and ONE[n][2] == 17]
    rng = np.random.default_rng(5)
    done = 0
    while done < 30:
        nodes, constants, now = [], {}, "x"
        for i in range(5):
            node, more, _ = one(chosen[rng.integers(len(chosen))], now, i)
            nodes.append(node)
            constants |= more
            now = node.output[0]
        nodes.append(N("Neg", [now], ["y"]))
        path = save(tmp_path / "m.onnx", nodes, constants, batch=["N", 1][done % 2])
        try:
            want = reference(path, X)
        except Exception:  # shapes that do not follow each other
            continue
        if not want.numel() or not want.isfinite().all() or want.abs().max() > 1e4:
            continue
        try:
            close(path, X)
            done += 1
        except (ns.InvalidInput, RuntimeError) as e:  # onnxruntime rounds the number of windows up to 1 where none fits
            if "too small" not in str(e):
                raise
