"""The node tests of the package onnx: each float input in turn is the network's input, and everything else is constant."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import nonsingular as ns

onnx = pytest.importorskip("onnx")

from nonsingular.models.onnx_file import File, Reader  # noqa: E402

# its formula has the exact size in place of the rounded one; onnxruntime and the rules have the rounded one
OTHERWISE = {"test_resize_downsample_scales_linear_align_corners", "test_resize_downsample_scales_cubic_align_corners"}


def files():
    """(name, file with one input and one output, its input, the output)."""
    for case in importlib.import_module("onnx.backend.test.case.node").collect_testcases(None):
        inputs, outputs = case.data_sets[0]
        domains = {o.domain for o in case.model.opset_import}
        if domains > {"", "ai.onnx"} or not all(isinstance(v, np.ndarray) for v in (*inputs, *outputs)):
            continue
        for i, x in enumerate(inputs):
            if x.dtype.kind != "f" or not x.ndim:
                continue
            for j, y in enumerate(outputs):
                model = onnx.ModelProto()
                model.CopyFrom(case.model)
                graph = model.graph
                graph.initializer.extend(
                    onnx.numpy_helper.from_array(v, graph.input[k].name) for k, v in enumerate(inputs) if k != i
                )
                output = onnx.ValueInfoProto()
                output.CopyFrom(graph.output[j])
                del graph.output[:]
                graph.output.append(output)
                yield case.name, model, x, y


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_node_tests_of_onnx():
    """What is read to the letter gives the expected outputs; nothing but InvalidInput is raised."""
    wrong, right = set(), 0
    for name, model, x, want in files():
        try:
            file = File(onnx, model, Path(name))
            network = Reader(file, [list(x.shape)], any_batch=False).module()
        except ns.InvalidInput:
            continue
        if file.output != model.graph.output[0].name:  # a softmax at the end
            continue
        found = network(torch.from_numpy(x.astype(np.float32))).detach().numpy().astype(np.float64)
        same = found.shape == want.shape and np.allclose(found, want.astype(np.float64), rtol=1e-3, atol=1e-4, equal_nan=True)
        right += same
        if not same:
            wrong.add(name)
    assert wrong <= OTHERWISE
    assert right >= 1500
