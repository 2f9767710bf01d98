"""Figure, tables and page, on surfaces made up here."""

from __future__ import annotations

import copy
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import QuadContourSet
from rich.console import Console

from nonsingular import report
from nonsingular.errors import InvalidInput
from nonsingular.records import Surface
from nonsingular.report.figure import contours, render
from nonsingular.report.summary import middle, read

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


def page_of(r: dict[str, Any]) -> str:
    figure = contours({m.title: m.runs.surfaces for m in read(r)})
    return report.page(r, render(figure, "svg").decode())


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
    ],
    ids=["two", "one", "hostile", "row", "column", "cell", "seven"],
)
def test_page_is_well_nested_and_loads_nothing(made: dict[str, Any]) -> None:
    text = page_of(made)
    page = Reader(text)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "link", "iframe", "object", "embed", "base", "image"}
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
    heat = page.tables["heat"][1:6]  # the first model, below the heading
    expected = 100 * np.mean([s["accuracy"] for s in made["models"]["m0"]["surfaces"]], axis=0)
    assert [row[1:] for row in heat] == [[f"{a:.1f}" for a in row] for row in expected]
    assert [row[0] for row in heat] == ["0", "0.0025", "0.005", "0.0075", "0.01"]


def test_verdict_by_hand() -> None:
    made = one_model()
    flat = Surface(EPS_X, EPS_W, np.full((5, 5), 0.5), 10, "sample", "paper", "m")
    made["models"]["m0"] |= {"surfaces": [flat.to_dict()], "clean": [0.75], "title": "Plain"}
    made["data"]["n"] = 10
    # Wilson, 5 of 10, z = 1.96: (0.5 + 1.92 / 10 -+ 1.96 sqrt(.025 + .96 / 100)) / 1.384 = 0.5 -+ 0.263
    told = "".join(Reader(report.page(made, "<svg></svg>")).words).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "With every input value off by up to 0.1 and every weight off by up to 0.005 at once, the model “Plain” is still right "
        "on 50.0 % of 10 test examples (95 % interval 23.7 to 76.3 %). Undisturbed: 75.0 %."
    ) in told


def test_verdict_names_the_first_model_and_the_best() -> None:
    told = page_of(results(("a", "c", "b")))
    assert "the model “a” is" in told and "the best of 3 models, “b”, on" in told
    assert "With every weight off by up to 0.005, the" in page_of(results(eps_x=(0.0,)))
    assert "With nothing moved, the" in page_of(results(eps_x=(0.0,), eps_w=(0.0,)))
    made = results(("best", "same"))
    made["models"]["m1"] = made["models"]["m0"] | {"title": "same"}
    assert "none of the other 1 does better" in page_of(made)


def test_what_multiplies_the_weight_radius_is_said() -> None:
    made = one_model()
    made["models"]["m0"]["surfaces"][0]["about"]["relative"] = True
    assert "every weight off by up to 0.005 times the largest value in its tensor at once" in page_of(made)
    assert "A weight moves by up to ε_w times the largest value in its tensor." in report.markdown(made)
    assert "largest" not in report.markdown(one_model())
    assert "ε_w times" in " ".join(contours({"a": read(made)[0].runs.surfaces}).get_supxlabel().split())


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
        '"steps": 100',
        '"torch": "2.9.0"',
        "9f86d081",
        "ab12",
        "epochs = 12",
    ):
        assert needed in told


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


@pytest.mark.parametrize("count", range(1, 13))
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


def test_write_leaves_four_files_and_twice_the_same(tmp_path: Path) -> None:
    made = json.loads(json.dumps(results()))  # as it comes from results.json
    before = copy.deepcopy(made)
    paths = report.write(made, tmp_path / "new" / "out")
    first = {name: path.read_bytes() for name, path in paths.items()}
    assert set(first) == {p.name for p in (tmp_path / "new" / "out").iterdir()}
    assert set(first) == {"figure1.png", "figure1.svg", "report.html", "report.md"}
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


# ---------------------------------------------------------------- certified surfaces and radii


def lower(s: Surface, share: float = 0.8) -> Surface:
    """A certified surface below `s`."""
    x, w = np.meshgrid(s.eps_x, s.eps_w)
    less = np.floor(1000 * s.accuracy * share ** ((x + 20 * w) / 0.1)) / 1000
    return Surface(s.eps_x, s.eps_w, less, s.n, "sample", "crown", s.model, 2.0, kind="certified", about=s.about)


def both(titles: tuple[str, ...] = ("Standard", "Joint"), seeds: tuple[int, ...] = (0, 1, 2), **grid: Any) -> dict[str, Any]:
    r = results(titles, seeds, **grid)
    for entry in r["models"].values():
        entry["surfaces"] = [
            Surface(**{**vars(s), "certified": lower(s)}).to_dict() for s in map(Surface.from_dict, entry["surfaces"])
        ]
    return r


def certified_only(**grid: Any) -> dict[str, Any]:
    r = one_model() if not grid else results(("Standard",), (0,), **grid)
    r.pop("claims", None)
    (entry,) = r["models"].values()
    s = lower(Surface.from_dict(entry["surfaces"][0]))
    entry |= {"surfaces": [s.to_dict()], "auc": [s.auc], "auc_x": [s.auc_x], "auc_w": [s.auc_w]}
    return r | {"kind": "certified", "attack": "crown", "scope": "sample"}


FRONTS = [
    {"accuracy": 0.9, "eps_x": list(EPS_X), "eps_w": [0.004, 0.002, None, None, None]},
    {"accuracy": 0.5, "eps_x": list(EPS_X), "eps_w": [0.008, 0.006, 0.005, 0.001, 0.0]},
    {"accuracy": 1.0, "eps_x": list(EPS_X), "eps_w": [None] * 5},
]


def test_certified_surfaces_stand_beside_attacked_ones(tmp_path: Path) -> None:
    r = both()
    report.write(r, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for entry in r["models"].values():
        s = [Surface.from_dict(d) for d in entry["surfaces"]]
        for surfaces in (s, [t.certified for t in s if t.certified]):
            assert f"{np.mean([t.auc for t in surfaces]):.3f}" in page
            assert f">{100 * np.mean([t.accuracy[2, 2] for t in surfaces]):.1f}" in page
    assert "Certified accuracy" in page
    assert "proven" in page.split("</header>")[0]
    assert "certified by crown, in every scope" in (tmp_path / "report.md").read_text()


def test_the_gap_is_attacked_minus_certified() -> None:
    r = both(("Standard",), (0,))
    (m,) = read(r)
    assert m.runs.certified is not None
    at = middle(m.runs.surfaces[0])
    gap = 100 * (m.runs.accuracy[at] - m.runs.certified.accuracy[at])
    assert f">{gap:.1f}<" in page_of(r)
    assert "not known" in page_of(r).lower()


def test_verdict_of_both_by_hand() -> None:
    r = both(("Standard",), (0,))
    (m,) = read(r)
    assert m.runs.certified is not None
    at = middle(m.runs.surfaces[0])
    head = page_of(r).split("</header>")[0].replace("\N{NO-BREAK SPACE}", " ")
    assert f"still right on {100 * m.runs.accuracy[at]:.1f} %" in head
    assert f"at least {100 * m.runs.certified.accuracy[at]:.1f} %" in head
    assert head.index("still right") < head.index("at least")


def test_a_certificate_alone_was_not_attacked(tmp_path: Path) -> None:
    r = certified_only()
    report.write(r, tmp_path)
    page = (tmp_path / "report.html").read_text()
    words = page.split("</header>")[0]
    assert "proven right on" in words
    assert "attack:" not in page
    assert "attack missed" not in page
    assert "scope: sample" not in words


def test_fronts_are_drawn_and_listed(tmp_path: Path) -> None:
    r = certified_only()
    next(iter(r["models"].values()))["fronts"] = FRONTS
    report.write(r, tmp_path)
    assert {"radii.png", "radii.svg"} <= {p.name for p in tmp_path.iterdir()}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "for 90" in page
    for value in ("0.004", "0.006", "0.001"):
        assert f">{value}<" in page
    assert ">-<" in page
    assert "0.006" in (tmp_path / "report.md").read_text()
    again = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    report.write(r, tmp_path)
    assert again == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    out = shown(report.fronts_table(FRONTS))
    assert "for 50 %" in out
    assert "0.008" in out


def test_radii_are_rounded_down() -> None:
    """A certified radius that is shown as more than it is would be wrong."""
    out = shown(report.fronts_table([{"accuracy": 0.5, "eps_x": [0.0], "eps_w": [0.00123456789]}]))
    assert "0.001234" in out
    assert "0.001235" not in out


@pytest.mark.parametrize("grid", [{"eps_x": (0.1,)}, {"eps_w": (0.0,)}, {"eps_x": (0.1,), "eps_w": (0.005,)}])
@pytest.mark.parametrize("make", [both, certified_only])
def test_lines_and_numbers_of_certificates(make: Any, grid: dict[str, Any], tmp_path: Path) -> None:
    report.write(make(**grid), tmp_path)
    assert "certified" in (tmp_path / "report.html").read_text()


def test_certified_above_attacked_is_refused() -> None:
    r = both(("Standard",), (0,))
    d = r["models"]["m0"]["surfaces"][0]
    d["certified"]["accuracy"][2][2] = 1.0
    with pytest.raises(InvalidInput, match="certified"):
        read(r)
