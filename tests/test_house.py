"""The house as docs/architecture.md and the style ask for it: folders, sizes, parameters; read off the source."""

import ast
import re

import pytest

from house import BEGIN, END, PACKAGE, PAGE, ROOT, imports, layers, picture, place, trees

AT_THE_ROOT = {"__init__", "errors", "plain", "untrusted"}
LINES, BODY, PARAMETERS = 400, 50, 6
OWN_ARGUMENTS = {"recurrent", "_batch_norm"}
"""Operators of ONNX and torch.export, which give their own arguments by position."""

ODD = (
    "is no gate", "moved as far again as the radii have grown", "so many threads of torch while it lasts",
    "what decides the bits", "a ray of its own", "until half is left",
)  # fmt: skip
"""Phrases that are not plain English of the field, in lower case."""


def functions():
    """(path, function) for every function of the package."""
    return [(path, node) for path, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_the_picture_is_that_of_the_imports():
    drawn = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert drawn == picture(), "docs/architecture.md is out of date; run: python tests/house.py"


def test_every_folder_has_a_floor_and_asks_only_those_below():
    floors = {name: k for k, floor in enumerate(layers()) for name in floor}
    assert set(floors) == {place(path) for path in trees()} - {"__init__"}
    for name, others in imports().items():
        for other in others:
            assert floors[other] > floors[name], f"{name} imports from {other}"


def test_the_root_holds_only_what_everything_stands_on():
    assert {p.stem for p in PACKAGE.glob("*.py")} == AT_THE_ROOT


@pytest.mark.parametrize("path", trees(), ids=str)
def test_a_module_is_one_idea(path):
    assert len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) < LINES


def test_functions_fit_on_a_screen():
    long = []
    for path, node in functions():
        said = (ast.get_docstring(node) or "").splitlines()
        if node.end_lineno - node.lineno + 1 - len(said) > BODY:
            long.append(f"{path}:{node.name}")
    assert not long


def test_only_public_functions_with_options_have_many_parameters():
    """Public: no underscore, said in a docstring; what goes beyond six is given by name."""
    many = []
    for path, node in functions():
        given = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
        public = not node.name.startswith("_") and (ast.get_docstring(node) or node.name == "attack")
        options = len(node.args.kwonlyargs) if not public else 0
        if len(given) + options > PARAMETERS and node.name not in OWN_ARGUMENTS:
            many.append(f"{path}:{node.name}")
    assert not many


def test_only_functions_of_users_and_of_other_libraries_are_asked_what_they_take():
    asking = {str(path) for path, tree in trees().items() if "inspect.signature" in ast.unparse(tree)}
    assert asking == {"catalog/__init__.py", "attacks/adapters.py", "models/loading.py"}


def test_the_guide_names_files_that_exist():
    for name in set(re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE.read_text(encoding="utf-8"))):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def docstrings():
    """(path, line, text) of every docstring, those of constants and attributes too."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                yield path, node.lineno, node.value.value


def test_docstrings_say_what_they_are_of():
    assert not [f"{path}:{line}" for path, line, text in docstrings() if text.lstrip().startswith("Of ")]


def test_no_odd_phrase_is_left():
    left = []
    for path in (*PACKAGE.rglob("*"), *(ROOT / "docs").rglob("*"), ROOT / "README.md"):
        if path.suffix in (".py", ".md", ".html", ".json"):
            text = " ".join(re.sub(r"[^\w' ]", " ", path.read_text(encoding="utf-8")).lower().split())
            left += [f"{path.relative_to(ROOT)}: {phrase}" for phrase in ODD if phrase in text]
    assert not left
