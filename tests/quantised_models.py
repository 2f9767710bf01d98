"""quantised_models.py - quantised ONNX files for tests, by onnxruntime's quantiser or of a few nodes, and what it computes."""

import itertools
import logging

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

N = helper.make_node


def reference(path, x):
    """Without optimisations: what the file says, operator by operator."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def written(path, nodes, constants, shape, opset=17):
    """A file of these nodes, from x to y.  constants: arrays, or tensors of ONNX."""
    held = [v if isinstance(v, onnx.TensorProto) else numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", ["N", *shape]), ("y", None)))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", *[None] * (1 if len(shape) == 1 else len(shape))])
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


class Calibration(CalibrationDataReader):
    def __init__(self, x):
        self.parts = iter([{"x": part.numpy()} for part in x.split(20)])

    def get_next(self):
        return next(self.parts, None)


def residual(path):
    """Two convolutions with a sum around the second, pooling and a matrix: 8 x 8 -> 10."""
    rng = np.random.default_rng(0)

    def f(*shape):
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    constants = {"a.w": f(8, 1, 3, 3), "a.b": f(8, 1)[:, 0] / 10, "b.w": f(8, 8, 3, 3), "b.b": f(8, 1)[:, 0] / 10}
    constants |= {"c.w": f(10, 8), "c.b": f(10, 1)[:, 0]}
    nodes = [
        N("Conv", ["x", "a.w", "a.b"], ["1"], name="conv1", pads=[1, 1, 1, 1]), N("Relu", ["1"], ["2"], name="relu1"),
        N("MaxPool", ["2"], ["3"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        N("Conv", ["3", "b.w", "b.b"], ["4"], name="conv2", pads=[1, 1, 1, 1]), N("Add", ["3", "4"], ["5"], name="add"),
        N("Relu", ["5"], ["6"], name="relu2"), N("GlobalAveragePool", ["6"], ["7"], name="mean"),
        N("Flatten", ["7"], ["8"], name="flat"), N("Gemm", ["8", "c.w", "c.b"], ["y"], name="gemm", transB=1),
    ]  # fmt: skip
    return written(path, nodes, constants, (1, 8, 8))


def dense(path, sizes=(3, 5, 3), seed=0):
    """Linear layers with ReLU between."""
    rng = np.random.default_rng(seed)
    nodes, constants, last = [], {}, "x"
    for k, (d, o) in enumerate(itertools.pairwise(sizes)):
        constants |= {
            f"{k}.w": rng.standard_normal((o, d)).astype(np.float32),
            f"{k}.b": rng.standard_normal(o).astype(np.float32) / 4,
        }
        out = "y" if k == len(sizes) - 2 else f"z{k}"
        nodes.append(N("Gemm", [last, f"{k}.w", f"{k}.b"], [out], name=f"gemm{k}", transB=1))
        last = out
        if out != "y":
            nodes.append(N("Relu", [out], [f"r{k}"], name=f"relu{k}"))
            last = f"r{k}"
    return written(path, nodes, constants, (sizes[0],))


def quantised(source, path, x, *, form="QDQ", activations="QUInt8", weights="QInt8", per_channel=False):
    """The file as onnxruntime quantises it, with static ranges from x."""
    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(
        str(source), str(path), Calibration(x), quant_format=getattr(QuantFormat, form), per_channel=per_channel,
        activation_type=getattr(QuantType, activations), weight_type=getattr(QuantType, weights),
    )  # fmt: skip
    return path
