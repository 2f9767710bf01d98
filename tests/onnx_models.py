"""onnx_models.py - small ONNX files for tests, and what onnxruntime makes of them."""

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from nonsingular.models.onnx_batches import load_onnx

RNG = np.random.default_rng(0)
SHAPE = (3, 6, 6)
N = helper.make_node


def f(*shape):
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def save(path, nodes, constants, *, batch="N", shape=SHAPE, opset=17, kind=TensorProto.FLOAT, inputs=("x",)):
    """An ONNX file of these nodes, from x to y."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, kind, [batch, *shape]) for n in inputs], [y],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)  # a checked file states the rank of its output
    if not model.graph.output[0].type.tensor_type.HasField("shape"):
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (1 + len(shape))))
    onnx.save(model, path)
    return path


def reference(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    parts = x.split(given.shape[0]) if isinstance(given.shape[0], int) else [x]
    return torch.cat([torch.from_numpy(session.run(None, {given.name: part.numpy()})[0]) for part in parts])


def close(path, x):
    """The model of a file, which gives what onnxruntime gives, as logits (B, K) where one dimension alone is not 1."""
    model, want = load_onnx(path), reference(path, x)
    torch.testing.assert_close(model(x).detach().reshape(want.shape), want, rtol=1e-4, atol=1e-5, equal_nan=True)
    return model


X = torch.from_numpy(RNG.random((5, *SHAPE)).astype(np.float32)) - 0.4
