"""Figure, tables and page, on surfaces made up here."""

from __future__ import annotations

import base64
import copy
import csv
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import QuadContourSet
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from nonsingular import report
from nonsingular.catalog import ATTACKS, BOUNDS, OTHER, cards
from nonsingular.errors import InvalidInput
from nonsingular.plain import legible
from nonsingular.report import templating
from nonsingular.report.figure import contours, render
from nonsingular.report.maps import PALETTES, colour, ink, surface_map
from nonsingular.report.meaning import meaning
from nonsingular.report.png import address, png, signed
from nonsingular.report.radii import fronts
from nonsingular.report.summary import middle, read, telling
from nonsingular.results.surface import Surface

EPS_X, EPS_W = (0.0, 0.05, 0.1, 0.15, 0.2), (0.0, 0.0025, 0.005, 0.0075, 0.01)
HOSTILE = "<img src=x onerror=alert(1)>\"'&$\\frac{ [bold] | `x`"
VOID = {"meta", "br", "hr", "img", "link", "input"}


def surface(seed: int = 0, *, robust: float = 1.0, eps_x: Any = EPS_X, eps_w: Any = EPS_W, model: str = "model") -> Surface:
    """A surface that falls along both radii, on 1,000 examples."""
    x, w = np.meshgrid(eps_x, eps_w)
    accuracy = np.rint(970 / (1 + ((x / 0.05 + w / 0.003) / robust / (1 + 0.1 * seed)) ** 3)) / 1000
    return Surface(
        tuple(eps_x), tuple(eps_w), accuracy, 1000, "dataset", "paper", model, 1.5, about={"seed": seed, "sha256": "ab12"}
    )


def with_rise() -> Surface:
    s = surface()
    s.accuracy[4, 0] = s.accuracy[3, 0] + 0.1
    return Surface(**{**vars(s), "flags": {(4, 0): ("one-class",)}})


def results(titles: tuple[str, ...] = ("Standard", "Joint"), seeds: tuple[int, ...] = (0, 1, 2), **grid: Any) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for k, title in enumerate(titles):
        runs = [surface(seed, robust=1 + k, model=title, **grid) for seed in seeds]
        models[f"m{k}"] = {
            "title": title, "settings": {"epochs": 12, "note": title}, "seeds": list(seeds), "auc": [s.auc for s in runs],
            "auc_x": [s.auc_x for s in runs], "auc_w": [s.auc_w for s in runs],
            "clean": [float(s.accuracy[0, 0]) for s in runs], "surfaces": [s.to_dict() for s in runs],
        }  # fmt: skip
    return {
        "format": 1, "data": {"name": "mnist", "n": 1000, "sha256": "9f86d081", "split": "test", "classes": ["0", "1"]},
        "grid": {"eps_x": list(grid.get("eps_x", EPS_X)), "eps_w": list(grid.get("eps_w", EPS_W))}, "scope": "dataset",
        "attack": "paper", "models": models,
        "claims": {
            "C1": {"statement": "a beats b", "verdict": "reproduced", "evidence": "0.4 against 0.2.", "numbers": {}},
            "C2": {"statement": "b | c", "verdict": "not reproduced", "evidence": "<b>0.1</b>\nagainst 0.2.", "numbers": {}},
        },
        "config": {"steps": 100}, "environment": {"versions": {"torch": "2.9.0"}, "git": None, "wall_seconds": 12.0},
        "command": "nonsingular demo --seeds 3 && echo '<done>'",
    }  # fmt: skip


def one_model() -> dict[str, Any]:
    alone = results(("Standard",), (0,))
    del alone["claims"]
    return alone


def below(s: Surface) -> Surface:
    """A certified surface under an attacked one, on the same grid and examples."""
    accuracy = np.rint(800 * s.accuracy**2) / 1000
    return dataclasses.replace(s, accuracy=accuracy, kind="certified", attack="crown", scope="sample", certified=None)


def with_certificates(made: dict[str, Any], only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every model, or those named, attacked and certified."""
    made = copy.deepcopy(made)
    for key, m in made["models"].items():
        if key in only or not only:
            for s in m["surfaces"]:
                s["certified"] = below(Surface.from_dict(s)).to_dict()
    return made


def certified_only(made: dict[str, Any]) -> dict[str, Any]:
    made = {k: v for k, v in copy.deepcopy(made).items() if k != "claims"}
    for m in made["models"].values():
        runs = [below(Surface.from_dict(s)) for s in m["surfaces"]]
        m |= {"surfaces": [s.to_dict() for s in runs]} | {k: [getattr(s, k) for s in runs] for k in ("auc", "auc_x", "auc_w")}
    return made | {"kind": "certified", "attack": "crown", "scope": "sample", "command": "nonsingular certify model"}


FRONTS = [
    {"accuracy": 0.9, "eps_x": list(EPS_X), "eps_w": [0.00409999, 0.003, 0.001, None, None]},
    {"accuracy": 0.5, "eps_x": list(EPS_X), "eps_w": [0.01, 0.008, 0.006, 0.003, 0.0]},
    {"accuracy": 0.99, "eps_x": list(EPS_X), "eps_w": [None] * 5},
]


def with_fronts() -> dict[str, Any]:
    made = certified_only(one_model())
    made["models"]["m0"]["fronts"] = copy.deepcopy(FRONTS)
    return made


def page_of(r: dict[str, Any]) -> str:
    radii = render(fronts(read(r)), "svg").decode() if any(m.fronts for m in read(r)) else ""
    return report.page([r], [radii])


def words_of(r: dict[str, Any]) -> str:
    return "".join(Reader(page_of(r)).words).replace("\N{NO-BREAK SPACE}", " ")


class Reader(HTMLParser):
    """Checks that every element is closed in turn; keeps the text, the elements, and the cells of the tables by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.kind = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.kind = dict(attrs)["class"] or ""
        elif tag == "tr":
            self.tables.setdefault(self.kind, []).append([])
        elif tag in {"td", "th"}:
            self.tables[self.kind][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.open):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[self.kind][-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


# ---------------------------------------------------------------------------------------------------- page


@pytest.mark.parametrize(
    "made",
    [
        results(),
        one_model(),
        results((HOSTILE, "b")),
        results(eps_w=(0.001,)),
        results(eps_x=(0.1,)),
        results(eps_x=(0.1,), eps_w=(0.001,)),
        results(tuple("abcdefg")),
        with_certificates(results((HOSTILE, "b"))),
        with_certificates(results(eps_w=(0.001,))),
        with_certificates(results(eps_x=(0.1,), eps_w=(0.001,))),
        with_fronts(),
    ],
    ids=["two", "one", "hostile", "row", "column", "cell", "seven", "both", "both-row", "both-cell", "fronts"],
)
def test_page_is_well_nested_and_loads_nothing(made: dict[str, Any]) -> None:
    text = page_of(made)
    page = Reader(text)
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base", "image"}
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json"}, {}]  # what the surfaces know, and the one that is in the policy by its hash
    script = text.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "data", "action", "poster", "srcset"} and tag != "a":
                assert value is not None and value.startswith(("#", "data:")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_page_escapes_every_text_it_is_given() -> None:
    made = results((HOSTILE, "b"))
    made["data"]["name"] = made["command"] = made["attack"] = HOSTILE
    made["claims"]["C1"] = dict.fromkeys(("statement", "verdict", "evidence"), HOSTILE)
    made["config"] = {HOSTILE: HOSTILE}
    made["models"]["m0"]["surfaces"][0]["flags"] = [{"row": 0, "column": 0, "flags": [HOSTILE]}]
    made["models"]["m0"]["surfaces"][0]["about"] = {HOSTILE: HOSTILE}
    text = page_of(made)
    assert "<img" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") > 10
    assert "".join(Reader(text).words).count(HOSTILE) > 10  # and a reader sees what was written


CRAFTED = {
    "end of a script": "</script><script>alert(1)</script>",
    "template": "{{7*7}}{% raw %}{# gone #}",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "comment": "--><!-- <style>*{display:none}</style>",
    "control": "a\x1b[31m\x00\x08b",
    "direction": "a\u202egnp.exe\u2066",
    "entity": "&lt;b&gt;&#60;b&#62;",
}


def written_everywhere(text: str) -> dict[str, Any]:
    """Results in which every text that a stranger can name is this one."""
    made = with_examples(with_certificates(results((text, "b"), seeds=(0,))), {"numbers": [{"at": [0], "x": 0.5, "moved": 1.0}]})
    made["data"] |= {"name": text, "split": text, "classes": [text, text], "columns": [text], "input_radii": {text: 0.1}}
    made |= {"command": text, "attack": text, "config": {text: text}, "environment": {text: text}, "run": text}
    made["claims"] = {text: dict.fromkeys(("statement", "verdict", "evidence"), text)}
    first = made["models"]["m0"]
    first |= {"settings": {text: text}, "fronts": copy.deepcopy(FRONTS)}
    first["masking"] = {"attack": text, "scope": text, "examples": 64, "flags": {text: text}, "numbers": {}}
    first["examples"]["first"][0]["weights"][0]["tensor"] = text
    for s in (first["surfaces"][0], first["surfaces"][0]["certified"]):
        s |= {"model": text, "attack": text, "flags": [{"row": 0, "column": 0, "flags": [text]}]}
        s["about"] = {text: text, "doubts": [text]}
    return made


@pytest.mark.parametrize("text", CRAFTED.values(), ids=CRAFTED)
def test_no_text_of_the_records_becomes_markup_or_template(text: str) -> None:
    """A page of crafted texts has the elements and attributes of a harmless one; only words and values differ."""
    page = report.page([written_everywhere(text)])
    crafted, harmless = Reader(page), Reader(report.page([written_everywhere("harmless")]))
    assert [(tag, list(a)) for tag, a in crafted.elements] == [(tag, list(a)) for tag, a in harmless.elements]
    shown = legible(text)
    words = "".join(crafted.words).replace("\N{NO-BREAK SPACE}", " ")
    forms = {shown, json.dumps(shown, ensure_ascii=False)[1:-1]}  # as words, and in lines of JSON
    assert sum(map(words.count, forms)) == "".join(harmless.words).count("harmless")
    block = page.split('<script type="application/json">')[1].split("</script>")[0]
    assert json.loads(block)["models"][0]["title"] == shown
    assert not set("\x00\x08\x1b\u202e\u2066") & set(page + report.markdown(written_everywhere(text)))
    assert "49" not in report.markdown(written_everywhere("{{7*7}}"))


def test_templates_escape_by_themselves() -> None:
    """No template says that a value is safe; what is `Markup` is our own drawing, style and script."""
    folder = Path(report.__file__).parent
    for path in (folder / "templates").iterdir():
        assert not re.search(r"\|\s*safe|autoescape|Markup", path.read_text()), path
    assert {p.stem for p in folder.glob("*.py") if "Markup(" in p.read_text()} == {"html", "lines", "maps", "templating"}
    with pytest.raises(UndefinedError):
        templating.render("page.html")  # a value that is missing is no empty text


def test_numbers_of_the_page_are_those_of_the_results() -> None:
    made = results()
    page = Reader(page_of(made))
    _, *rows = page.tables["models"]
    for row, m in zip(rows, made["models"].values(), strict=True):
        at = [100 * s["accuracy"][2][2] for s in m["surfaces"]]
        clean = [100 * c for c in m["clean"]]
        assert row == [
            m["title"],
            f"{mean(clean):.1f} ± {stdev(clean):.1f}",
            *(f"{mean(m[k]):.3f} ± {stdev(m[k]):.3f}" for k in ("auc", "auc_x", "auc_w")),
            f"{mean(at):.1f} ± {stdev(at):.1f}",
            str(sum(len(s["rises"]) for s in m["surfaces"])),
        ]
    heat = page.tables["heat"][1:6]  # of the first model, below the heading
    expected = 100 * np.mean([s["accuracy"] for s in made["models"]["m0"]["surfaces"]], axis=0)
    assert [row[1:] for row in heat] == [[f"{a:.1f}" for a in row] for row in expected]
    assert [row[0] for row in heat] == ["0", "0.0025", "0.005", "0.0075", "0.01"]


def test_verdict_by_hand() -> None:
    made = one_model()
    flat = Surface(EPS_X, EPS_W, np.full((5, 5), 0.5), 10, "sample", "paper", "m")
    made["models"]["m0"] |= {"surfaces": [flat.to_dict()], "clean": [0.75], "title": "Plain"}
    made["data"]["n"] = 10
    # Wilson, 5 of 10, z = 1.96: (0.5 + 1.92 / 10 -+ 1.96 sqrt(.025 + .96 / 100)) / 1.384 = 0.5 -+ 0.263
    assert (
        "With every input value off by up to 0.1 and every weight off by up to 0.005 at once, at most 50.0 % of 10 test examples "
        "(95 % interval 23.7 to 76.3 %) are still classified correctly by the model “Plain”."
    ) in words_of(made)
    assert "75.0 %clean accuracy" in words_of(made) and "0.500AUC attacked" in words_of(made)
    assert "AUC, the mean over the grid, 0.500 attacked" in report.markdown(made)


def test_verdict_names_the_first_model_and_the_best() -> None:
    told = page_of(results(("a", "c", "b")))
    assert "by the model “a”; by the best of 3 models, “b”, at most" in told
    assert "With every weight off by up to 0.005, at most" in words_of(results(eps_x=(0.0,)))
    assert "With nothing moved, at most" in words_of(results(eps_x=(0.0,), eps_w=(0.0,)))
    made = results(("best", "same"))
    made["models"]["m1"] = made["models"]["m0"] | {"title": "same"}
    assert "none of the other 1 does better" in page_of(made)


def test_what_multiplies_the_weight_radius_is_said() -> None:
    made = one_model()
    made["models"]["m0"]["surfaces"][0]["about"]["relative"] = True
    assert "every weight off by up to 0.0025 times the largest value in its tensor at once" in page_of(made)
    assert "A weight moves by up to ε_w times the largest value in its tensor." in report.markdown(made)
    assert "largest" not in report.markdown(one_model())
    assert "ε_w times" in " ".join(contours({"a": read(made)[0].runs.surfaces}).get_supxlabel().split())


def test_how_large_a_weight_radius_is_beside_the_weights_is_said() -> None:
    made = one_model()
    about = made["models"]["m0"]["surfaces"][0]["about"]
    moved = {"1.weight": {"shape": [4, 2], "radius": 0.01, "median": 0.05}, "2.weight": {"shape": [2, 2], "radius": 0.01}}
    about["moved_at_largest_eps_w"] = moved
    # the verdict is at 0.0025, a quarter of the largest: 0.0025 / 0.05 = 5 %; the tensor without a median says nothing
    assert "εw = 0.0025 is 5 % of a typical weight, the median |W| of its tensor." in words_of(made)
    moved["2.weight"]["median"] = 0.5  # 0.5 %
    assert "ε_w = 0.0025 is 0.5 to 5 % of a typical weight, the median \\|W\\| of its tensor." in report.markdown(made)
    moved["2.weight"] |= {"radius": {"shape": [2, 2], "largest": 0.01, "sha256": "ab"}}  # a radius for each element
    moved["1.weight"]["median"] = 0.0  # a tensor of zeros
    assert "typical" not in words_of(made) and "typical" not in words_of(one_model())


def test_page_shows_claims_only_if_there_are_some() -> None:
    assert Reader(page_of(results())).tables["claims"][2] == ["C2", "b | c", "✗ not reproduced", "<b>0.1</b>\nagainst 0.2."]
    assert "<h2>Claims" not in page_of(one_model())
    assert "<h2>Claims" not in page_of(one_model() | {"claims": {}})


def test_page_lists_rises_and_flags() -> None:
    made = one_model()
    made["models"]["m0"]["surfaces"] = [with_rise().to_dict()]
    page = Reader(page_of(made))
    told = "".join(page.words).replace("\N{NO-BREAK SPACE}", " ")
    s = with_rise()
    (rise,) = s.rises
    assert f"{100 * rise['from']:.1f} to {100 * rise['to']:.1f} % along εw, at εx = 0, εw = 0.01 (seed 0)" in told
    assert "one-class (seed 0) at (εx, εw) = (0, 0.01)" in told
    assert page.tables["heat"][5][1] == f"{100 * rise['to']:.1f}↑"
    assert "No rise" in page_of(one_model())


def test_page_says_how_to_do_it_again() -> None:
    told = "".join(Reader(page_of(results())).words)
    for needed in (
        "nonsingular demo --seeds 3 && echo '<done>'",
        "config.steps: 100",
        '"torch": "2.9.0"',
        "9f86d081",
        "ab12",
        "epochs = 12",
    ):
        assert needed in told


# -------------------------------------------------------------------------------------------- certificates


def test_numbers_of_both_kinds_are_those_of_the_results() -> None:
    made = with_certificates(results())
    page = Reader(page_of(made))
    header, *rows = page.tables["models"]
    assert header[:2] == ["Model", "Accuracy"]
    expected = [
        (m["title"], kind, [s if kind == "attacked" else s["certified"] for s in m["surfaces"]])
        for m in made["models"].values() for kind in ("attacked", "certified")
    ]  # fmt: skip
    for row, (title, kind, runs) in zip(rows, expected, strict=True):
        at = [100 * s["accuracy"][2][2] for s in runs]
        assert row[:2] == [title, kind]
        assert row[3:6] == [f"{mean(a):.3f} ± {stdev(a):.3f}" for a in ([s[k] for s in runs] for k in ("auc", "auc_x", "auc_w"))]
        assert row[6:] == [f"{mean(at):.1f} ± {stdev(at):.1f}", "0"]
    up, low = (np.mean([s["accuracy"] for s in runs], axis=0) for _, _, runs in expected[:2])
    for kind, values in (("heat", up), ("heat certified", low), ("heat gap", up - low)):
        assert [row[1:] for row in page.tables[kind][1:6]] == [[f"{100 * a:.1f}" for a in row] for row in values]
    told = [a["title"] for tag, a in page.elements if tag == "td" and "title" in a][:75]
    assert told[:25] == told[25:50] == told[50:]  # both, and what lies between, over every number
    assert f"attacked {100 * up[1, 2]:.1f} %, mean of 3" in told[7] and f"certified {100 * low[1, 2]:.1f} %, mean" in told[7]
    assert f"not known {100 * (up - low)[1, 2]:.1f} %" in told[7]


def test_verdict_on_both_by_hand() -> None:
    made = one_model()
    flat = Surface(EPS_X, EPS_W, np.full((5, 5), 0.5), 10, "dataset", "paper", "m")
    flat = dataclasses.replace(flat, certified=dataclasses.replace(flat, accuracy=np.zeros((5, 5)), kind="certified"))
    made["models"]["m0"] |= {"surfaces": [flat.to_dict()], "clean": [0.75], "title": "Plain"}
    made["data"]["n"] = 10
    # Wilson, 0 of 10: upper end (1.92 / 10 + 1.96 sqrt(.96 / 100)) / 1.384 = 0.278
    assert (
        "at most 50.0 % of 10 test examples (95 % interval 23.7 to 76.3 %) are still classified correctly by the model “Plain”; "
        "0.0 % (0.0 to 27.8 %) are proven to be."
    ) in words_of(made)
    assert "All examples share one set of worst weights." in words_of(made)
    assert "for every attack, in exact arithmetic." in words_of(made)


def test_verdict_names_the_model_of_which_most_is_proven() -> None:
    made = with_certificates(results(("a", "b", "c")), only=("m0", "m1"))
    told = words_of(made)
    proven = mean(s["certified"]["accuracy"][2][2] for s in made["models"]["m1"]["surfaces"])
    assert (
        "the best of 3 models, “c”, at most" in told
        and f"; the highest certified accuracy is that of “b”, {100 * proven:.1f} %." in told
    )
    assert "the highest certified" not in words_of(with_certificates(results(("a", "b", "c"))))  # the best is told already


def test_certified_only_speaks_of_no_attack_that_was_run() -> None:
    made = certified_only(one_model())
    told = words_of(made)
    share = made["models"]["m0"]["surfaces"][0]["accuracy"][1][1]  # next to nothing is left in the middle
    assert f"at least {100 * share:.1f} % of 1,000 test examples (95 % interval" in told
    assert "are proven to be classified correctly by the model “Standard”." in told
    assert "Certified by crown, in every scope." in told and "bound: " in told and "No rise: certified accuracy" in told
    for text in (told, report.markdown(made), shown(report.model_table(made)), contours_of(made).get_supxlabel()):
        assert set(re.findall(r"(?:\w+ )?\w*attack\w*", text.replace("\n", " "), re.I)) <= {"every attack"}  # "for every attack"
        assert text.replace("\n", " ").count("for every attack") == len(re.findall("attack", text, re.I))
    assert "Upper bound" in meaning(("attacked",), fronts=False) and "Upper bound" not in meaning(("certified",), fronts=True)
    assert "heat certified" in Reader(page_of(made)).tables and "heat gap" not in Reader(page_of(made)).tables


def test_attacked_only_speaks_of_no_certificate_that_was_made() -> None:
    assert not re.search("certified|proven", words_of(results()) + report.markdown(results()))


def test_a_rise_of_a_certified_surface_is_the_fault_of_the_bound() -> None:
    risen = dataclasses.replace(with_rise(), kind="certified", attack="crown", flags={})
    made = certified_only(one_model())
    made["models"]["m0"]["surfaces"] = [risen.to_dict()]
    told = words_of(made)
    assert "where the bound was looser at the smaller radius: 1 in 1 seed" in told and "missed" not in told
    for text in (shown(report.surface_table(risen)), contours({"a": [risen]}).get_supxlabel()):
        assert "looser before it" in " ".join(text.split()) and "missed" not in text


def contours_of(made: dict[str, Any]) -> Any:
    return contours({m.title: m.runs.surfaces for m in read(made)})


def test_attacked_maps_stand_above_the_certified_on_one_scale() -> None:
    made = with_certificates(results(("A", "B", "C")), only=("m0", "m2"))
    figure = contours_of(made)
    assert [ax.get_title(loc="left").split(" ±")[0] for ax in figure.axes[:6]] == [
        *(f"({k.lower()}) {k}\nattacked: AUC {mean(m['auc']):.3f}" for k, m in zip("ABC", made["models"].values(), strict=True)),
        *(
            f"({k}) certified: AUC {mean(s['certified']['auc'] for s in made['models'][m]['surfaces']):.3f}" if m else ""
            for k, m in (("a", "m0"), ("", ""), ("c", "m2"))
        ),
    ]  # fmt: skip
    fills = [c for ax in figure.axes for c in ax.get_children() if isinstance(c, QuadContourSet) and c.filled]
    assert len(fills) == 5 and {(f.norm.vmin, f.norm.vmax) for f in fills} == {(0, 100)}
    assert [t.get_text() for t in figure.axes[4].texts] == ["not certified"]
    caption = " ".join(figure.get_supxlabel().split())
    assert "Attacked: an upper bound" in caption and "Certified: a lower bound" in caption and "over the 3 seeds" in caption
    assert [bool(ax.get_xlabel()) for ax in figure.axes[:3]] == [False] * 3  # labelled below the certified ones


def test_titles_of_both_kinds_do_not_leave_their_panels() -> None:
    figure = contours_of(with_certificates(results(tuple("abcd"))))
    renderer = FigureCanvasAgg(figure).get_renderer()
    for ax in figure.axes[:8]:
        title = next(t for t in ax.get_children() if isinstance(t, Text) and t.get_text() == ax.get_title(loc="left"))
        assert title.get_window_extent(renderer).x1 <= ax.get_window_extent(renderer).x1


def test_one_model_has_both_maps_side_by_side() -> None:
    s = surface()
    s = dataclasses.replace(s, certified=below(s))
    left, right = s.plot().axes[:2]
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == (
        f"model\nattacked: AUC {s.auc:.3f}", f"certified: AUC {below(s).auc:.3f}",
    )  # fmt: skip
    assert left.get_position().y0 == right.get_position().y0 and left.get_position().x1 < right.get_position().x0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_any_number_of_models_with_both(count: int) -> None:
    figure = contours_of(with_certificates(results(tuple(map(str, range(count))), (0,))))
    assert sum(isinstance(c, QuadContourSet) and c.filled for ax in figure.axes for c in ax.get_children()) == 2 * count


@pytest.mark.parametrize("grid", [{"eps_w": (0.001,)}, {"eps_x": (0.05,)}], ids=["row", "column"])
def test_both_lines_share_a_panel_and_what_lies_between_is_grey(grid: dict[str, Any]) -> None:
    s = surface(**grid)
    (ax,) = contours({"a": [dataclasses.replace(s, certified=below(s))]}).axes
    curves = {c.get_label(): c.lines[0].get_ydata() for c in ax.containers}
    np.testing.assert_allclose(curves["attacked"], 100 * s.accuracy.ravel())
    np.testing.assert_allclose(curves["certified"], 100 * below(s).accuracy.ravel())
    (grey,) = [c for c in ax.collections if c.get_label() == "not known"]
    ends = 100 * np.concatenate([s.accuracy.ravel(), below(s).accuracy.ravel()])
    assert set(np.round(ends, 9)) == set(np.round(grey.get_paths()[0].vertices[:, 1], 9))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["not known", "attacked", "certified"]


def test_one_cell_with_both_is_a_span() -> None:
    s = surface(eps_x=(0.05,), eps_w=(0.001,))
    (ax,) = contours({"a": [dataclasses.replace(s, certified=below(s))]}).axes
    assert ax.texts[0].get_text() == f"{100 * below(s).accuracy.item():.1f} to {100 * s.accuracy.item():.1f} %"


def test_certificates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    s, c = surface(), below(surface())
    for wrong, says in (
        (
            dataclasses.replace(c, accuracy=s.accuracy + np.eye(5) * 1e-3),
            "certified accuracy above its attacked one at eps_x = 0",
        ),
        (dataclasses.replace(c, n=10), "certified on 10 examples"),
        (dataclasses.replace(s), "is attacked on"),
        (dataclasses.replace(c, eps_x=(0.0, 1.0, 2.0, 3.0, 4.0)), "different grids"),
    ):
        with pytest.raises(InvalidInput, match=says):
            contours({"a": [dataclasses.replace(s, certified=wrong)]})
    with pytest.raises(InvalidInput, match="all attacked or all certified"):
        contours({"a": [s, c]})
    for change in ({"eps_w": [0.1]}, {"eps_x": [0.1] * 5}):
        made = with_fronts()
        made["models"]["m0"]["fronts"][0] |= change
        with pytest.raises(InvalidInput, match="front"):
            report.write(made, tmp_path)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------- radii


def test_page_shows_the_radii_of_the_results() -> None:
    page = Reader(page_of(with_fronts()))
    assert page.tables["fronts"] == [
        ["εx", "for 90 %", "for 50 %", "for 99 %"],
        ["0", "0.004099", "0.01", "-"],  # rounded down: 0.0041 would not be certified
        ["0.05", "0.003", "0.008", "-"],
        ["0.1", "0.001", "0.006", "-"],
        ["0.15", "-", "0.003", "-"],
        ["0.2", "-", "0", "-"],
    ]
    told = words_of(with_fronts())
    assert "-: not even εw = 0 is certified." in told and "It is found by bisection" in told
    assert "bisection" not in words_of(certified_only(one_model()))


def test_a_front_is_drawn_as_steps_that_are_certified_everywhere() -> None:
    (ax,) = fronts(read(with_fronts())).axes
    lines = {line.get_label(): line for line in ax.lines if line.get_label().endswith(("%", ")"))}
    assert list(lines) == ["90 %", "50 %", "99 % (nowhere)"]
    assert {line.get_drawstyle() for line in lines.values()} == {"steps-pre"}  # before a point, its own radius
    assert lines["90 %"].get_xydata().tolist() == [[0, 0.00409999], [0, 0.00409999], [0.05, 0.003], [0.1, 0.001]]
    assert lines["50 %"].get_xydata()[1:].tolist() == [[x, w] for x, w in zip(EPS_X, FRONTS[1]["eps_w"], strict=True)]
    assert not len(lines["99 % (nowhere)"].get_xydata())
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines.values()}) == 3


def test_radii_of_several_models_and_of_one_input_radius() -> None:
    made = certified_only(results(("a", "b", "c"), (0,)))
    for key in ("m0", "m2"):
        made["models"][key]["fronts"] = [{"accuracy": 0.5, "eps_x": [0.0], "eps_w": [0.004]}]
    figure = fronts(read(made))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "c"]
    assert "Where a line ends" not in figure.get_supxlabel()
    assert report.markdown(made).count("## Largest certified ε_w, ") == 2 and "not even" not in report.markdown(made)


def test_tables_of_radii() -> None:
    text = shown(report.fronts_table(FRONTS))
    assert "0.004099" in text and "for 90 %" in text and "not even ε_w = 0" in text
    assert "not even" not in shown(report.fronts_table(FRONTS[1:2]))
    assert "| 0.15 | - | 0.003 | - |" in report.markdown(with_fronts())


def test_write_adds_the_picture_of_the_radii_and_twice_the_same(tmp_path: Path) -> None:
    made = json.loads(json.dumps(with_fronts()))
    first = {name: path.read_bytes() for name, path in report.write(made, tmp_path).items()}
    assert set(first) == {"figure1.png", "figure1.svg", "radii.png", "radii.svg", "report.html", "report.md", "cells.csv"}
    assert {name: p.read_bytes() for name, p in report.write(made, tmp_path).items()} == first
    assert first["report.html"].count(b'<figure class="card"') == 1  # the figure of the radii is on it, and no other


# -------------------------------------------------------------------------------------------------- figure


def test_panels_share_one_scale_and_have_labelled_axes() -> None:
    names = "abcdefg"
    figure = contours({n: [surface(s, robust=1 + k) for s in range(3)] for k, n in enumerate(names)}, title="All")
    panels = [ax for ax in figure.axes if any(isinstance(c, QuadContourSet) for c in ax.get_children())]
    fills = [c for ax in panels for c in ax.get_children() if isinstance(c, QuadContourSet) and c.filled]
    assert len(panels) == len(fills) == 7
    assert {(f.norm.vmin, f.norm.vmax, f.get_cmap().name) for f in fills} == {(0, 100, "viridis")}
    (bar,) = [ax for ax in figure.axes if ax.get_ylabel() == "accuracy (%)"]
    assert bar.get_ylim() == (0, 100)
    for k, ax in enumerate(panels):  # labelled where no other panel stands between it and the edge
        assert bool(ax.get_ylabel()) == (k % 4 == 0)
        assert bool(ax.get_xlabel()) == (k >= 3)
        auc = [surface(s, robust=1 + k).auc for s in range(3)]
        assert ax.get_title(loc="left") == f"({names[k]}) {names[k]}\nAUC {mean(auc):.3f} ± {stdev(auc):.3f} (3 seeds)"
        assert ax.get_xlim() == (0, 0.2) and ax.get_ylim() == (0, 0.01)  # nothing beyond the grid


def test_labels_of_contour_lines_do_not_touch() -> None:
    figure = contours({f"m{k}": [surface(robust=r)] for k, r in enumerate((0.3, 0.6, 1.0, 2.0, 4.0))})
    renderer = FigureCanvasAgg(figure).get_renderer()
    count = 0
    for ax in figure.axes:
        boxes = [t.get_window_extent(renderer) for t in ax.texts if t.get_text().endswith(" %")]
        count += len(boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(ax.bbox.containsx(b.x0) and ax.bbox.containsx(b.x1) and ax.bbox.containsy(b.y0) for b in boxes)
    assert count >= 15


def test_one_panel_needs_no_letter_and_one_seed_no_spread() -> None:
    s = surface()
    figure = s.plot()
    assert figure.axes[0].get_title(loc="left") == f"model\nAUC {s.auc:.3f}"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_any_number_of_panels(count: int) -> None:
    figure = contours({str(k): [surface(k)] for k in range(count)})
    assert render(figure, "svg").count(b"QuadContourSet_") == 2 * count


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_same_run_same_bytes(suffix: str, tmp_path: Path) -> None:
    panels = {"a": [surface(0), with_rise()], "b": [surface(2)]}
    a, b = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix.upper()}"
    figure = contours(panels, path=a)
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other"}):  # the reader's own settings
        contours(panels, path=b)
    assert a.read_bytes() == b.read_bytes() == render(figure, suffix)
    assert b"Date" not in a.read_bytes() or suffix == "png"


def test_a_rise_is_marked_and_explained() -> None:
    figure = contours({"a": [surface(), with_rise()]})
    (rings,) = [c for c in figure.axes[0].collections if not isinstance(c, QuadContourSet) and len(c.get_offsets()) > 0]
    assert np.asarray(rings.get_offsets()).tolist() == [[0.0, 0.01]]
    assert "Rings: accuracy rises" in figure.get_supxlabel()
    assert "Rings" not in contours({"a": [surface()]}).get_supxlabel()


@pytest.mark.parametrize("grid", [{"eps_w": (0.001,)}, {"eps_x": (0.05,)}], ids=["row", "column"])
def test_one_row_or_column_is_a_line_with_its_band(grid: dict[str, Any]) -> None:
    s = surface(**grid)
    (ax,) = contours({"a": [s]}).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 * s.accuracy.ravel())
    low, high = s.interval
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert set(np.round(100 * np.concatenate([low.ravel(), high.ravel()]), 9)) <= set(np.round(band, 9))
    assert ax.get_xlabel().startswith("$ε_x$" if "eps_w" in grid else "$ε_w$") and ax.get_ylabel() == "accuracy (%)"


def test_one_cell_is_a_number() -> None:
    s = surface(eps_x=(0.05,), eps_w=(0.001,))
    (ax,) = contours({"a": [s]}).axes
    assert ax.texts[0].get_text() == f"{100 * s.accuracy.item():.1f} %"
    assert "at ε_x = 0.05, ε_w = 0.001" in ax.texts[1].get_text()


def test_flat_surface_and_hostile_name_can_be_drawn() -> None:
    flat = Surface(EPS_X, EPS_W, np.ones((5, 5)), 10, "sample", "a$b$", "m")
    assert render(contours({HOSTILE: [flat]}, title=HOSTILE), "svg")


def test_drawing_changes_no_surface() -> None:
    runs = [surface(0), with_rise()]
    before = [(copy.deepcopy(s.to_dict()), s.accuracy.tobytes()) for s in runs]
    settings = dict(matplotlib.rcParams)
    contours({"a": runs})
    assert [(s.to_dict(), s.accuracy.tobytes()) for s in runs] == before
    assert dict(matplotlib.rcParams) == settings


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'a\.jpg'.*\.png, \.svg or \.pdf"):
        contours({"a": [surface()]}, path=tmp_path / "a.jpg")
    with pytest.raises(InvalidInput, match="0 panels"):
        contours({})
    with pytest.raises(InvalidInput, match="without a surface"):
        contours({"a": []})
    with pytest.raises(InvalidInput, match="different grids"):
        contours({"a": [surface()], "b": [surface(eps_x=(0.0, 0.1))]})
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- tables


def shown(table: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables_show_names_as_they_are() -> None:
    made = results((HOSTILE, "b"))
    assert HOSTILE in shown(report.model_table(made))
    assert "not reproduced" in shown(report.claims_table(made))
    assert report.claims_table(one_model()).row_count == 0


def test_surface_table_has_the_grid_and_marks_rises() -> None:
    s = with_rise()
    table = report.surface_table(s)
    assert [c.header for c in table.columns] == ["ε_w \\ ε_x", "0", "0.05", "0.1", "0.15", "0.2"]
    text = shown(table)
    assert f"{100 * s.accuracy[4, 0]:.1f}↑" in text and text.count("↑") == 2  # in its cell and in the caption
    assert "↑" not in shown(report.surface_table(surface()))


def test_surface_tables_say_on_which_side_of_the_truth_they_lie() -> None:
    s = dataclasses.replace(surface(), certified=below(surface()))
    up, low = (" ".join(shown(report.surface_table(t)).split()) for t in (s, below(s)))
    assert "model, attacked" in up and "an upper bound" in up and "certified" not in up
    assert "model, certified" in low and "certified by crown, in every scope: a lower bound" in low
    assert "upper bound" not in shown(report.surface_table(surface()))


def test_markdown_is_well_formed() -> None:
    text = report.markdown(results((HOSTILE, "b")))
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    assert [len(b) for b in blocks] == [4, 4]  # heading, rule, two rows
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"\| ((---|--:) \| )*(---|--:) \|", block[1])
    assert "<" not in text.split("## Command")[0]
    assert "    nonsingular demo --seeds 3 && echo '<done>'\n" in text
    assert "## Claims" not in report.markdown(one_model())


# --------------------------------------------------------------------------------------------------- whole


def test_write_leaves_five_files_and_twice_the_same(tmp_path: Path) -> None:
    made = json.loads(json.dumps(results()))  # as it comes from results.json
    before = copy.deepcopy(made)
    paths = report.write(made, tmp_path / "new" / "out")
    first = {name: path.read_bytes() for name, path in paths.items()}
    assert set(first) == {p.name for p in (tmp_path / "new" / "out").iterdir()}
    assert set(first) == {"figure1.png", "figure1.svg", "report.html", "report.md", "cells.csv"}
    assert {name: p.read_bytes() for name, p in report.write(made, tmp_path / "new" / "out").items()} == first
    assert made == before


def test_results_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for change, says in (({"format": 2}, "format 2"), ({"models": {}}, "no model")):
        with pytest.raises(InvalidInput, match=says):
            report.write(results() | change, tmp_path)
    short = results()
    short["models"]["m0"]["auc"].pop()
    with pytest.raises(InvalidInput, match=r"'m0' must have one entry per seed.*'auc': 2"):
        report.write(short, tmp_path)
    assert not list(tmp_path.iterdir())


def test_equal_titles_are_told_apart() -> None:
    assert [m.title for m in read(results(("a", "a", "b")))] == ["a (m0)", "a (m1)", "b"]


def test_middle_of_the_grid() -> None:
    assert middle(surface()) == (2, 2)
    assert middle(surface(eps_x=(0.0, 0.1), eps_w=(0.0,))) == (0, 1)


def test_the_verdict_moves_toward_0_until_something_is_left() -> None:
    made = one_model()
    at = {(10, 10): 0.0, (5, 5): 0.0, (2, 2): 0.05, (1, 1): 0.3}
    radii = tuple(k / 100 for k in range(11))
    accuracy = np.zeros((11, 11))
    for point, a in at.items():
        accuracy[point] = a
    s = Surface(radii, radii, accuracy, 100, "sample", "apgd", "m")
    made["models"]["m0"] |= {"surfaces": [s.to_dict()], "clean": [0.9]}
    made["grid"] = {"eps_x": list(radii), "eps_w": list(radii)}
    assert telling(read(made)) == (1, 1)  # 5 % are less than a tenth of 90 %
    made["models"]["m0"]["clean"] = [0.5]
    assert telling(read(made)) == (2, 2)  # but not less than a tenth of 50 %
    told = words_of(made)
    assert "In the middle of the grid, at εx = 0.05, εw = 0.05, accuracy is 0.0 %." in told
    assert "% at (εx 0.02, εw 0.02)" in told


# ------------------------------------------------------------------------------------------ single examples


def with_examples(made: dict[str, Any], x: Any = None) -> dict[str, Any]:
    """The first model with counts of two classes, and one example: of 2 x 3 pixels, or a row of numbers."""
    raw = {name: base64.b64encode(bytes(v)).decode() for name, v in PIXELS.items()}
    given = {"shape": [2, 3, 1], "factor": 1, **raw} if x is None else x
    first = {
        "example": 7, "label": 1, "predicted": 0, "eps_x": 0.05, "eps_w": 0.0025, "margin_undisturbed": 1.25, "margin": -0.5,
        "input": given, "weights": [{"tensor": HOSTILE, "largest": 1.0, "mean": 0.25}],
    }  # fmt: skip
    counts = {"n": [40, 60], "undisturbed": [40, 57], "cells": [{"eps_x": 0.05, "eps_w": 0.0025, "right": [20, 6]}]}
    made["models"]["m0"]["examples"] = {"by_class": counts, "first": [first]}
    return made


PIXELS = {"x": [0, 50, 100, 150, 200, 255], "moved": [5, 45, 100, 155, 195, 250], "change": [128, 1, 255, 128, 64, 192]}


def test_a_picture_is_the_pixels_that_were_stored() -> None:
    page = Reader(page_of(with_examples(one_model())))
    drawn = [a for tag, a in page.elements if tag == "img"]
    x, moved, change = (Image.open(io.BytesIO(base64.b64decode(str(a["src"]).split(",")[1]))) for a in drawn)
    assert (x.size, x.mode, change.mode) == ((3, 2), "L", "RGB")
    assert [np.asarray(p).ravel().tolist() for p in (x, moved)] == [PIXELS["x"], PIXELS["moved"]]
    colours = [tuple(c) for c in np.asarray(change).reshape(-1, 3).tolist()]
    assert colours[0] == colours[3] == (255, 255, 255)
    assert colours[1] == (5, 90, 180) and colours[2] == (190, 85, 0)  # the ends: -127 and 127
    assert [a["alt"] for a in drawn] == ["the input, “1”", "the moved input, taken for “0”", "what changed"]


def test_png_of_colours_and_the_strongest_channel() -> None:
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)
    assert address(pixels).startswith("data:image/png;base64,")
    mixed = signed(np.array([[[100, 255, 128]], [[1, 200, 128]]], dtype=np.uint8))
    assert mixed.tolist() == [[[190, 85, 0]], [[5, 90, 180]]]


def test_classes_and_first_to_break_are_told() -> None:
    page = Reader(page_of(with_examples(one_model())))
    assert page.tables["heat classes"] == [
        ["Class", "n", "clean", "0.05, 0.0025"], ["0", "40", "100", "50"], ["1", "60", "95", "10"],
    ]  # fmt: skip
    told = "".join(page.words)
    assert "The class with the lowest accuracy over these columns is “1”" in told
    assert "Example 7: “1” becomes “0”" in told and "margin 1.25 to −0.5" in told
    assert page.tables["moved"][1] == [HOSTILE, " 25", "100"]
    text = report.markdown(with_examples(one_model()))
    assert "| 1 | 60 | 95 | 10 |" in text and "## By class, Standard" in text
    assert "By class" not in report.markdown(one_model()) and "The first to break" not in page_of(one_model())


def test_inputs_that_are_no_pictures_are_told_as_numbers() -> None:
    made = with_examples(one_model(), {"numbers": [{"at": [3], "x": 0.5, "moved": None}]})
    page = Reader(page_of(made))
    assert page.tables["inputs"] == [["input", "x", "x'"], ["3", "0.5", "not a number"]]
    assert not [a for tag, a in page.elements if tag == "img"]


def test_masking_is_told_beside_the_verdict_in_the_page_and_in_markdown() -> None:
    made = one_model()
    made["models"]["m0"]["masking"] = {
        "attack": "paper", "scope": "sample", "examples": 64, "flags": {"saturation": "gradients are 0 | <b>"}, "numbers": {},
    }  # fmt: skip
    assert "Signs of masked gradients in “Standard” (saturation): its accuracy under attack may be far above" in words_of(made)
    assert "- saturation: gradients are 0 \\| &lt;b&gt;" in report.markdown(made)
    made["models"]["m0"]["masking"]["flags"] = {}
    assert "far above" not in words_of(made) and "No sign of masked gradients" in report.markdown(made)


# ------------------------------------------------------------------------------------------ maps and methods


def test_every_attack_and_bound_of_the_catalog_has_a_card() -> None:
    assert all(entry.card for entry in (*ATTACKS.values(), *BOUNDS.values()))
    found = cards(["apgd+square", "mine"], ["crown"])
    assert list(found) == ["apgd", "square", "apgd+square", "mine", "crown"]
    assert found["mine"] == OTHER and "Lower bound" in found["crown"].means
    told = words_of(with_certificates(one_model()))
    assert "arXiv:2102.11935, section 4.1." in told and "Zhang et al., arXiv:1811.00866" in told


def luminance(rgb: Any) -> float:
    """WCAG 2."""
    return float(np.dot([0.2126, 0.7152, 0.0722], [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]))


def test_colours_are_ordered_by_lightness_and_numbers_on_them_can_be_read() -> None:
    for name, palette in PALETTES.items():
        light = [luminance(c[:3]) for c in palette]
        assert (np.diff(light) > 0).all() if name == "accuracy" else (np.diff(light) < 0).all()
        for percent, on in enumerate(light):
            text = {"#000": 0.0, "#fff": 1.0}[ink(percent, name)]
            assert (max(on, text) + 0.05) / (min(on, text) + 0.05) >= 4.5
    assert colour(-3.0) == colour(0.0) and colour(120.0) == colour(100.0)


@pytest.mark.parametrize("eps_x", [(0.0, 0.1, 0.2), (0.0, 0.001, 1.0), (0.05,)])
def test_cells_of_a_map_tile_the_plot_in_the_order_of_the_array(eps_x: tuple[float, ...]) -> None:
    s = surface(eps_x=eps_x)
    page = Reader(surface_map(s.accuracy, s.eps_x, s.eps_w, label=HOSTILE))
    cells = [{k: float(a[k]) for k in ("x", "y", "width", "height")} for tag, a in page.elements if a.get("class") == "c"]
    assert len(cells) == s.accuracy.size and sum(c["width"] * c["height"] for c in cells) == pytest.approx(406 * 344, rel=0.01)
    xs, ys = ([c[k] for c in cells] for k in ("x", "y"))
    assert xs[: len(eps_x)] == sorted(xs[: len(eps_x)]) and ys[0] > ys[-1]  # the first row, the smallest eps_w, is the lowest
    assert min(c["width"] for c in cells) > 30  # also where the steps are very unequal
    fills = [a["fill"] for _, a in page.elements if a.get("class") == "c"]
    assert fills == [colour(100 * a) for a in s.accuracy.ravel()]


def test_numbers_of_a_map_round_nothing_to_none_or_all() -> None:
    accuracy = np.array([[1.0, 0.999], [0.004, 0.0]])
    page = Reader(surface_map(accuracy, (0.0, 0.1), (0.0, 0.1), label="", marked=frozenset({(0, 1)})))
    assert [w for w in page.words if w][:4] == ["100", ">99*", "<1", "0"]


# ---------------------------------------------------------------------------------------------- comparison


def other(title: str, **change: Any) -> dict[str, Any]:
    made = one_model()
    made["models"]["m0"]["title"] = title
    made["models"]["m0"]["surfaces"][0]["about"] |= change.pop("about", {})
    return made | change


def test_runs_on_the_same_examples_and_grid_become_one() -> None:
    first, second = other("a"), other("a", attack="apgd", command="nonsingular evaluate b")
    (group,) = report.together({"one": first, "two": second})
    assert [m.title for m in read(group)] == ["a (one)", "a (two)"]
    assert list(group["models"]) == ["one/m0", "two/m0"] and report.statement([group]) == []
    told = words_of(group)
    assert (
        "none of the other 1 does better" in told and "nonsingular evaluate b" in told and "two: {" in told.replace("config.", "")
    )
    (both,) = report.together({"one": first, "two": certified_only(other("b"))})  # a certificate holds in every scope
    assert "Robust accuracy lies between the two" in words_of(both)
    assert [m.title for m in read(report.together({"one": first, "two": other("b")})[0])] == ["a", "b"]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"data": {**one_model()["data"], "sha256": "0000"}}, "data: 1,000 test examples of mnist (sha256 9f86d081) and"),
        ({"data": {**one_model()["data"], "n": 500}}, "examples: 1,000 test examples"),
        ({"grid": {"eps_x": [0.0, 0.1], "eps_w": list(EPS_W)}}, "eps_x: 0 to 0.2 in 5 points and 0 to 0.1 in 2 points"),
        ({"scope": "sample"}, "scope, that is who shares W': dataset and sample"),
        ({"about": {"relative": True}}, "radii relative to the tensor: None and True"),
        ({"about": {"domain": [-1.0, 1.0]}}, "range of the inputs: None and"),
    ],
)
def test_runs_that_do_not_compare_stand_apart_and_the_page_says_why(change: dict[str, Any], says: str) -> None:
    runs = {"one": other("a"), "two": other("b", **change), "three": other("c")}
    groups = report.together(runs)
    assert [list(g["models"]) for g in groups] == [["one/m0", "three/m0"], ["m0"]]
    (why,) = report.statement(groups)
    assert why.startswith("The numbers of two do not compare with those of one, three. They differ in") and says in why
    text = report.page(groups)
    page = Reader(text)
    assert says in "".join(page.words).replace("\N{NO-BREAK SPACE}", " ") and text.count('class="verdict"') == 2
    assert text.count("none of the other 1 does better") == 1  # of one and three; two is not held against them
    assert says.replace("|", "\\|") in report.markdown(*groups)


def test_csv_has_every_cell_of_every_seed(tmp_path: Path) -> None:
    made = with_certificates(results(), only=("m1",))
    made["models"]["m0"]["surfaces"][0] = with_rise().to_dict()
    path = report.write(made, tmp_path)["cells.csv"]
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 25 * (3 + 3 + 3)
    for row in rows:
        key = "m0" if row["model"] == "Standard" else "m1"
        s = made["models"][key]["surfaces"][int(row["seed"])]
        s = s["certified"] if row["kind"] == "certified" else s
        i, j = s["eps_w"].index(float(row["eps_w"])), s["eps_x"].index(float(row["eps_x"]))
        expected = s["accuracy"][i][j], s["interval"]["low"][i][j], s["interval"]["high"][i][j]
        assert [float(row[k]) for k in ("accuracy", "low", "high")] == pytest.approx(expected, abs=1e-6)
        assert int(row["n"]) == 1000
    assert [r["flags"] for r in rows if r["flags"]] == ["one-class rise"]


def test_two_groups_have_figures_of_their_own(tmp_path: Path) -> None:
    groups = report.together({"one": other("a"), "two": other("b", scope="sample")})
    assert {"figure1.png", "figure1-2.png", "report.html", "report.md", "cells.csv"} <= set(report.write_all(groups, tmp_path))
