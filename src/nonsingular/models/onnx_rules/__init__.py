"""onnx_rules - ONNX operators in functions of torch: one small rule for each, in the table RULES."""

from nonsingular.models.onnx_rules.elementwise import ELEMENTWISE
from nonsingular.models.onnx_rules.layers import LAYERS
from nonsingular.models.onnx_rules.quantised import CONTRIBUTED, QUANTISED
from nonsingular.models.onnx_rules.scope import Node, Scope, Size
from nonsingular.models.onnx_rules.shapes import SHAPES, constant_of
from nonsingular.models.onnx_rules.sizes import ON_SIZES, settled
from nonsingular.models.onnx_rules.windows import WINDOWS

RULES = {**LAYERS, **ELEMENTWISE, **SHAPES, **WINDOWS, **QUANTISED}
"""ONNX operator -> how it is written."""

__all__ = ["CONTRIBUTED", "ON_SIZES", "RULES", "Node", "Scope", "Size", "constant_of", "settled"]
