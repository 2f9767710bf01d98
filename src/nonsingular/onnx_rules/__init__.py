"""onnx_rules - ONNX operators in functions of torch: one small rule for each, in the table RULES."""

from nonsingular.onnx_rules.elementwise import ELEMENTWISE
from nonsingular.onnx_rules.layers import LAYERS
from nonsingular.onnx_rules.scope import Node, Scope, Size
from nonsingular.onnx_rules.shapes import SHAPES, constant_of
from nonsingular.onnx_rules.sizes import ON_SIZES, settled
from nonsingular.onnx_rules.windows import WINDOWS

RULES = {**LAYERS, **ELEMENTWISE, **SHAPES, **WINDOWS}
"""ONNX operator -> how it is written."""

__all__ = ["ON_SIZES", "RULES", "Node", "Scope", "Size", "constant_of", "settled"]
