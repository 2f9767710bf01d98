"""vnnlib.py - .vnnlib files: what inputs are in a box, and what is unsafe of the outputs.  VNN-LIB 1.0, vnnlib.org.

A file describes its counterexamples: all `assert`s together.  Those on inputs X_i must come to a box; those on outputs Y_j to a
disjunction of conjunctions of linear inequalities.  Numbers are read to the nearest float64, as the checkers of VNN-COMP do.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from nonsingular.data.property import Conjunction, Property
from nonsingular.data.readers.idx import unpacked
from nonsingular.errors import InvalidInput

LARGEST = 2**25
"""Bytes of a file, unpacked: 32 MiB."""
DEEPEST = 50
"""Parentheses within parentheses."""
MOST = 10_000
"""Conjunctions, and inequalities in all of them, once the file is a disjunction of these."""
NUMBERS = 2**24
"""Coefficients of all outputs in all inequalities."""

_TOKEN = re.compile(r";[^\n]*|\(|\)|[^\s();]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)

Variable = tuple[str, int]


@dataclass(frozen=True)
class Linear:
    """Sum of the terms and a constant: exact."""

    terms: dict[Variable, Fraction]
    constant: Fraction

    def plus(self, other: Linear, factor: Fraction = Fraction(1)) -> Linear:
        terms = dict(self.terms)
        for v, c in other.terms.items():
            terms[v] = terms.get(v, Fraction(0)) + factor * c
        return Linear({v: c for v, c in terms.items() if c}, self.constant + factor * other.constant)


@dataclass(frozen=True)
class Inequality:
    """left <= 0, of this line."""

    left: Linear
    line: int


Formula = list[list[Inequality]]
"""A disjunction of conjunctions."""
Value = Linear | Formula | str


def load_property(path: str | os.PathLike[str], shape: Sequence[int] | None = None) -> Property:
    """The property in a .vnnlib file, packed (.gz) or not.

    shape: of one input of the model, which X_0, X_1, ... fill row by row; None: a flat one.
    Raises InvalidInput, with the line, for a file that is damaged or too large, for inputs that are no box, and for what is not
    `declare-const`, `assert`, `and`, `or`, `<=`, `>=`, `+`, `-` and `*` of real numbers.  Cost: about 0.1 ms an input.
    """
    found = read(Path(path))
    return found if shape is None else found.shaped(shape)


def read(path: Path) -> Property:
    """The property in a file, with flat inputs (1, n)."""
    if not path.is_file():
        raise InvalidInput(f"property '{path}' {'is not a file' if path.exists() else 'does not exist'}; give a .vnnlib file")
    size = path.stat().st_size
    data = unpacked(path) if size <= LARGEST else b""
    if size > LARGEST or len(data) > LARGEST:
        raise InvalidInput(f"{path} is {max(size, len(data)):,} bytes long; at most {LARGEST:,} of a property are read")
    try:
        text = data.decode("utf-8")
    except ValueError:
        raise InvalidInput(f"{path} is not text in UTF-8; give a .vnnlib file") from None
    return _Reader(path, text).property()


class _Reader:
    """Goes through the text once.  A form is evaluated where it closes, so nothing here calls itself."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.line = path, 1
        self.declared: dict[Variable, int] = {}
        self.low: dict[int, Fraction] = {}
        self.high: dict[int, Fraction] = {}
        self.unsafe: Formula = [[]]
        self._read(text)

    def refuse(self, why: str, line: int | None = None) -> InvalidInput:
        return InvalidInput(f"{self.path}: line {line or self.line}: {why}")

    def _read(self, text: str) -> None:
        stack: list[list[Value]] = []
        lines: list[int] = []
        for token in self._tokens(text):
            if token == "(":
                if len(stack) == DEEPEST:
                    raise self.refuse(f"its parentheses are nested more than {DEEPEST} deep; write it flatter")
                stack.append([])
                lines.append(self.line)
            elif not stack:
                raise self.refuse(
                    f"'{_short(token)}' stands outside of parentheses; expected (declare-const ...) or (assert ...)"
                )
            elif token != ")":
                stack[-1].append(token)
            else:
                form, line = stack.pop(), lines.pop()
                if stack:
                    stack[-1].append(self._value(form, line))
                else:
                    self._command(form, line)
        if stack:
            raise self.refuse("the file ends within parentheses; is it cut off?", lines[0])

    def _tokens(self, text: str) -> Iterator[str]:
        end = 0
        for match in _TOKEN.finditer(text):
            self.line += text.count("\n", end, match.start())
            end = match.start()
            if not match[0].startswith(";"):
                yield match[0]

    # --- forms ------------------------------------------------------------------------------------------------------------

    def _command(self, form: list[Value], line: int) -> None:
        match form:
            case ["declare-const", str(name), "Real"]:
                self._declare(name, line)
            case ["declare-const", *_]:
                raise self.refuse("expected (declare-const X_0 Real), of a real number", line)
            case ["assert", content]:
                self._assert(self._formula(content, line))
            case _:
                head = form[0] if form and isinstance(form[0], str) else ""
                raise self.refuse(
                    f"the command '{_short(head)}' is not known; expected (declare-const X_0 Real) or (assert ...)", line
                )

    def _declare(self, name: str, line: int) -> None:
        match = _VARIABLE.fullmatch(name)
        if match is None:
            raise self.refuse(
                f"the constant '{_short(name)}' is neither an input X_0, X_1, ... nor an output Y_0, Y_1, ...", line
            )
        variable = match[1], int(match[2])
        if variable in self.declared:
            raise self.refuse(f"{name} is declared twice", line)
        self.declared[variable] = line

    def _value(self, form: list[Value], line: int) -> Value:
        """What a form within others comes to."""
        if not form or not isinstance(form[0], str):
            raise self.refuse("a form without an operator", line)
        op, arguments = form[0], form[1:]
        if op in _COMPARE or op in _ARITHMETIC:
            numbers = [self._linear(a, line) for a in arguments]
            if op in _ARITHMETIC:
                return self.exact(_ARITHMETIC[op](self, numbers, line), line)
            if len(numbers) != 2:
                raise self.refuse(f"'{op}' of {len(numbers)} sides; expected two", line)
            lower, upper = numbers if op == "<=" else reversed(numbers)
            return [[Inequality(self.exact(lower.plus(upper, Fraction(-1)), line), line)]]
        if op not in ("or", "and"):
            raise self.refuse(f"'{_short(op)}' is not known; expected and, or, <=, >=, +, -, *", line)
        found: Formula = [] if op == "or" else [[]]
        for formula in (self._formula(a, line) for a in arguments):
            found = self._either(found, formula, line) if op == "or" else self._both(found, formula, line)
        return found

    def _linear(self, value: Value, line: int) -> Linear:
        if isinstance(value, Linear):
            return value
        if not isinstance(value, str):
            raise self.refuse("a formula where a number belongs", line)
        if (match := _VARIABLE.fullmatch(value)) is not None:
            variable = match[1], int(match[2])
            if variable not in self.declared:
                raise self.refuse(f"{value} is not declared", line)
            return Linear({variable: Fraction(1)}, Fraction(0))
        number = float(value) if len(value) <= 100 and _NUMBER.fullmatch(value) else math.nan
        if not math.isfinite(number):
            raise self.refuse(f"'{_short(value)}' is no finite number and no input or output", line)
        return Linear({}, Fraction(number))

    def _formula(self, value: Value, line: int) -> Formula:
        if not isinstance(value, list):
            raise self.refuse("a number where a formula belongs", line)
        return value

    def _both(self, first: Formula, second: Formula, line: int) -> Formula:
        """Their conjunction, as a disjunction again."""
        rows = sum(map(len, first)) * len(second) + sum(map(len, second)) * len(first)
        if max(rows, len(first) * len(second)) > MOST:
            raise self.refuse(f"it comes to more than {MOST:,} inequalities", line)
        return [a + b for a in first for b in second]

    def _either(self, first: Formula, second: Formula, line: int) -> Formula:
        """Their disjunction.  `first` is added to."""
        if len(first) + len(second) > MOST:
            raise self.refuse(f"it comes to more than {MOST:,} inequalities", line)
        first += second
        return first

    def exact(self, value: Linear, line: int) -> Linear:
        """Itself, if all of its numbers are float64.  So they never grow."""
        if not all(abs(c) <= _HUGE and Fraction(float(c)) == c for c in (*value.terms.values(), value.constant)):
            raise self.refuse("it comes to coefficients that are no numbers in float64; write them out", line)
        return value

    # --- what is asserted -------------------------------------------------------------------------------------------------

    def _assert(self, formula: Formula) -> None:
        of_inputs = [i for part in formula for i in part if _is_of_inputs(i)]
        if of_inputs and len(formula) > 1:
            raise self.refuse("inputs within a disjunction are no box; write one file for each box", of_inputs[0].line)
        for i in of_inputs:
            self._bound(i)
        others = [[i for i in part if not _is_of_inputs(i) and not _is_true(i)] for part in formula]
        if (false := next((i for part in others for i in part if not i.left.terms), None)) is not None:
            raise self.refuse("an inequality between numbers alone, which is false", false.line)
        if others != [[]]:
            self.unsafe = self._both(self.unsafe, others, self.line)

    def _bound(self, i: Inequality) -> None:
        """c X + b <= 0."""
        if len(i.left.terms) > 1:
            raise self.refuse("an inequality between inputs and others; a box has numbers as its ends", i.line)
        (((_, number), c),) = i.left.terms.items()
        end = self.exact(Linear({}, -i.left.constant / c), i.line).constant
        if c > 0:
            self.high[number] = min(end, self.high.get(number, end))
        else:
            self.low[number] = max(end, self.low.get(number, end))

    # --- the whole --------------------------------------------------------------------------------------------------------

    def property(self) -> Property:
        inputs, outputs = (self._count(kind) for kind in "XY")
        for which, ends in (("lower", self.low), ("upper", self.high)):
            if (open_ := next((i for i in range(inputs) if i not in ends), None)) is not None:
                raise self.refuse(f"X_{open_} has no {which} end; a box has two for each input", self.declared["X", open_])
        if (empty := next((i for i in range(inputs) if self.low[i] > self.high[i]), None)) is not None:
            raise self.refuse(
                f"the box is empty: X_{empty} lies above {float(self.low[empty])} and below {float(self.high[empty])}"
            )
        if sum(map(len, self.unsafe)) * outputs > NUMBERS:
            raise self.refuse(f"its inequalities hold more than {NUMBERS:,} coefficients of outputs")
        if not all(self.unsafe) or not self.unsafe:
            raise self.refuse("it asserts nothing of the outputs" if self.unsafe else "its assertions are an empty disjunction")
        lo, hi = (torch.tensor([[float(e[i]) for i in range(inputs)]], dtype=torch.float64) for e in (self.low, self.high))
        return Property(lo, hi, tuple(_conjunction(part, outputs) for part in self.unsafe))

    def _count(self, kind: str) -> int:
        numbers = {n for k, n in self.declared if k == kind}
        if not numbers:
            raise self.refuse(f"it declares no {'input X_0' if kind == 'X' else 'output Y_0'}; is it a .vnnlib file?")
        if (missing := next((n for n in range(len(numbers)) if n not in numbers), None)) is not None:
            raise self.refuse(
                f"{kind}_{missing} is not declared, but {kind}_{max(numbers)} is", self.declared[kind, max(numbers)]
            )
        return len(numbers)


def _is_of_inputs(i: Inequality) -> bool:
    return any(kind == "X" for kind, _ in i.left.terms)


def _is_true(i: Inequality) -> bool:
    """Whether it says nothing."""
    return not i.left.terms and i.left.constant <= 0


def _conjunction(part: list[Inequality], outputs: int) -> Conjunction:
    A = torch.zeros(len(part), outputs, dtype=torch.float64)
    b = torch.zeros(len(part), dtype=torch.float64)
    for row, i in enumerate(part):
        b[row] = float(i.left.constant)
        for (_, j), c in i.left.terms.items():
            A[row, j] = float(c)
    return Conjunction(A, b)


# --- arithmetic -----------------------------------------------------------------------------------------------------------

_HUGE = Fraction(torch.finfo(torch.float64).max)


def _sum(reader: _Reader, numbers: list[Linear], line: int) -> Linear:
    terms: dict[Variable, Fraction] = {}
    for n in numbers:
        for v, c in n.terms.items():
            terms[v] = terms.get(v, Fraction(0)) + c
    return Linear({v: c for v, c in terms.items() if c}, sum((n.constant for n in numbers), Fraction(0)))


def _difference(reader: _Reader, numbers: list[Linear], line: int) -> Linear:
    if not numbers:
        raise reader.refuse("'-' of nothing", line)
    first, *others = numbers if len(numbers) > 1 else (Linear({}, Fraction(0)), *numbers)
    return first.plus(_sum(reader, others, line), Fraction(-1))


def _product(reader: _Reader, numbers: list[Linear], line: int) -> Linear:
    linear, *others = [n for n in numbers if n.terms] or [Linear({}, Fraction(1))]
    if others:
        raise reader.refuse("a product of inputs or outputs is not linear", line)
    factor = Fraction(1)
    for n in (n for n in numbers if not n.terms):
        factor = reader.exact(Linear({}, factor * n.constant), line).constant
    return Linear({}, Fraction(0)).plus(linear, factor)


_COMPARE = ("<=", ">=")
_ARITHMETIC: dict[str, Callable[[_Reader, list[Linear], int], Linear]] = {"+": _sum, "-": _difference, "*": _product}


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
