"""Records by hand numbers, round trips through JSON, and logs that were torn or damaged."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nonsingular.errors import InvalidInput
from nonsingular.results import surface as records
from nonsingular.results.files import Log, write_atomic, write_json
from nonsingular.results.statistics import volume, wilson
from nonsingular.results.surface import Cell, Surface


def surface(accuracy, eps_x=None, eps_w=None, n=100, **more):
    a = np.asarray(accuracy, dtype=float)
    return Surface(
        tuple(eps_x or (0.1 * i for i in range(a.shape[1]))), tuple(eps_w or (0.01 * i for i in range(a.shape[0]))),
        a, n, "sample", "neuron", **more,
    )  # fmt: skip


# ---------------------------------------------------------------- Wilson's interval


def test_wilson_by_hand():
    # 5 of 10, z = 2: centre (0.5 + 4/20) / 1.4 = 0.5; half = 2/1.4 sqrt(.25/10 + 4/400) = 2/1.4 sqrt(0.035) = 0.267261
    lo, hi = wilson(5, 10, z=2)
    assert (float(lo), float(hi)) == pytest.approx((0.5 - 0.26726124, 0.5 + 0.26726124))


@pytest.mark.parametrize("n", [1, 10, 997, 10_000])
def test_wilson_equals_scipy(n):
    stats = pytest.importorskip("scipy.stats")
    for k in {0, 1, n // 3, n - 1, n}:
        want = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert tuple(map(float, wilson(k, n))) == pytest.approx((want.low, want.high), abs=1e-12)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_holds_the_proportion_and_mirrors(n, p):
    k = round(p * n)
    lo, hi = map(float, wilson(k, n))
    assert 0 <= lo <= k / n + 1e-12
    assert k / n - 1e-12 <= hi <= 1
    assert tuple(map(float, wilson(n - k, n))) == pytest.approx((1 - hi, 1 - lo), abs=1e-12)


# ---------------------------------------------------------------- volume


def test_volume_by_hand_on_a_grid_that_is_not_uniform():
    # columns 0, 1, 3; rows 0, 2.  Row areas: (1+.5)/2*1 + (.5+.25)/2*2 = 1.5;  (.5+.5)/2*1 + (.5+0)/2*2 = 1
    # volume (1.5 + 1)/2 * 2 = 2.5, over the grid's area 3 * 2
    values = np.array([[1, 0.5, 0.25], [0.5, 0.5, 0.0]])
    assert volume(values, [0, 2], [0, 1, 3]) == pytest.approx(2.5 / 6)


def test_volume_equals_numpy_trapezoid_twice():
    rng = np.random.default_rng(0)
    xs, ws, a = np.cumsum(rng.random(6)), np.cumsum(rng.random(4)), rng.random((4, 6))
    want = np.trapezoid(np.trapezoid(a, xs, axis=1), ws) / ((xs[-1] - xs[0]) * (ws[-1] - ws[0]))
    assert volume(a, ws, xs) == pytest.approx(want)


grids = st.lists(st.floats(1e-3, 10), min_size=1, max_size=6).map(lambda steps: np.cumsum(steps).tolist())


@given(grids, grids, st.floats(0, 1))
def test_the_volume_of_a_constant_is_the_constant(ws, xs, c):
    assert volume(np.full((len(ws), len(xs)), c), ws, xs) == pytest.approx(c)


@given(grids, grids, st.data())
def test_volume_lies_between_the_extremes_and_is_symmetric(ws, xs, data):
    a = data.draw(hnp.arrays(float, (len(ws), len(xs)), elements=st.floats(0, 1)))
    v = volume(a, ws, xs)
    assert a.min() - 1e-9 <= v <= a.max() + 1e-9
    assert volume(a.T, xs, ws) == pytest.approx(v)


def test_one_point_is_its_own_volume():
    assert volume(np.array([[0.7]]), [0.01], [0.1]) == pytest.approx(0.7)
    assert volume(np.array([[1.0, 0.0]]), [0.01], [0.0, 0.1]) == pytest.approx(0.5)


def test_axis_areas_are_those_of_the_first_row_and_column():
    s = surface([[1.0, 0.5], [0.2, 0.1]])
    assert s.auc_x == pytest.approx(0.75)
    assert s.auc_w == pytest.approx(0.6)
    assert s.auc == pytest.approx((1 + 0.5 + 0.2 + 0.1) / 4)


# ---------------------------------------------------------------- Surface


def test_surface_goes_through_json_unchanged():
    s = surface(
        [[0.99, 1 / 3], [0.1, 0.0]], n=300, model="a model", seconds=1.5, flags={(1, 0): ("one-class",)}, about={"seed": 3}
    )
    text = json.dumps(s.to_dict(), allow_nan=False)
    again = Surface.from_dict(json.loads(text))
    assert np.array_equal(again.accuracy, s.accuracy)
    assert (again.eps_x, again.eps_w, again.n, again.scope, again.attack) == (s.eps_x, s.eps_w, s.n, s.scope, s.attack)
    assert (again.model, again.seconds, dict(again.flags), dict(again.about)) == ("a model", 1.5, dict(s.flags), {"seed": 3})
    assert json.dumps(again.to_dict()) == text


def test_the_interval_is_wilson_of_the_counts():
    s = surface([[1 / 3, 0.0]], n=300)
    lo, hi = wilson(np.array([[100, 0]]), 300)
    assert np.array_equal(s.interval[0], lo)
    assert np.array_equal(s.interval[1], hi)


def test_rises_are_found_on_both_axes_largest_first():
    s = surface([[0.9, 0.5, 0.6], [0.4, 0.8, 0.1]], eps_x=(0.0, 0.1, 0.2), eps_w=(0.0, 0.01))
    assert s.rises == [
        {"along": "eps_x", "eps_x": 0.1, "eps_w": 0.01, "from": 0.4, "to": 0.8},
        {"along": "eps_w", "eps_x": 0.1, "eps_w": 0.01, "from": 0.5, "to": 0.8},
        {"along": "eps_x", "eps_x": 0.2, "eps_w": 0.0, "from": 0.5, "to": 0.6},
    ]
    assert surface([[0.9, 0.5], [0.4, 0.4]]).rises == []


def cell(eps_x, eps_w, correct, **more):
    return Cell(eps_x, eps_w, np.asarray(correct, dtype=bool), **more)


def test_a_surface_of_cells_in_any_order():
    cells = [cell(0.1, 0.0, [1, 0, 0, 0], seconds=2), cell(0.0, 0.5, [0, 0, 0, 0], flags=("one-class",), seconds=1),
             cell(0.0, 0.0, [1, 1, 1, 0]), cell(0.1, 0.5, [0, 0, 0, 1])]  # fmt: skip
    s = Surface.from_cells(cells, (0.0, 0.1), (0.0, 0.5), scope="sample", attack="a")
    assert s.accuracy.tolist() == [[0.75, 0.25], [0.0, 0.25]]
    assert (s.n, s.seconds, dict(s.flags)) == (4, 3, {(1, 0): ("one-class",)})


def test_a_surface_needs_every_cell():
    with pytest.raises(KeyError):
        Surface.from_cells([cell(0.0, 0.0, [1])], (0.0, 0.1), (0.0,), scope="sample", attack="a")


def test_a_surface_prints_its_numbers():
    text = str(surface([[1.0, 0.505], [0.25, 0.0]]))
    assert all(part in text for part in ("100.0", "50.5", "25.0", "AUC 0.439", "scope sample", "attack neuron", "100 examples"))


# ---------------------------------------------------------------- Cell


@given(hnp.arrays(bool, st.integers(1, 40)), st.floats(0, 1), st.floats(0, 1))
def test_a_cell_goes_through_json_unchanged(correct, eps_x, eps_w):
    c = Cell(eps_x, eps_w, correct, 0.25, ("one-class", "other"))
    again = Cell.from_dict(json.loads(json.dumps(c.to_dict())))
    assert np.array_equal(again.correct, correct)
    assert again.correct.dtype == bool
    assert (again.eps_x, again.eps_w, again.seconds, again.flags) == (eps_x, eps_w, 0.25, ("one-class", "other"))


# ---------------------------------------------------------------- Log


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path / "events.jsonl")
    for i in range(3):
        log.append({"i": i, "text": "ε\n"})
    return log


def numbers(log):
    return [entry["i"] for entry in log]


def test_a_log_gives_back_what_was_appended(log):
    assert list(log) == [{"i": i, "text": "ε\n"} for i in range(3)]
    assert list(Log(log.path.with_name("none"))) == []


def test_every_torn_last_line_is_dropped_and_overwritten(log):
    whole = log.path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start + 1, len(whole) - 1):  # every length that is not the whole last line
        log.path.write_bytes(whole[:cut])
        assert numbers(log) == [0, 1], cut
        log.append({"i": 9})
        assert numbers(log) == [0, 1, 9], cut
        assert log.path.read_bytes().startswith(whole[:start])


def test_a_last_line_that_lacks_only_its_newline_is_kept(log):
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-1])
    assert numbers(log) == [0, 1, 2]
    log.append({"i": 9})  # what a reader was given must still be there
    assert numbers(log) == [0, 1, 2, 9]


def test_a_torn_first_line_is_dropped(log):
    log.path.write_bytes(log.path.read_bytes()[:7])
    assert numbers(log) == []
    log.append({"i": 9})
    assert numbers(log) == [9]


@pytest.mark.parametrize("damage", [b"\x00\x00\x00", b"{}", b"17", b"[]", b"\xff\xfe", b'{"crc": 1, "entry": {"i": 5}}'])
def test_a_damaged_line_in_the_middle_is_named(log, damage):
    lines = log.path.read_bytes().split(b"\n")
    lines[1] = damage
    log.path.write_bytes(b"\n".join(lines))
    with pytest.raises(InvalidInput, match=r"events\.jsonl: line 2 is damaged"):
        list(log)


def test_one_changed_digit_is_found(log):
    log.path.write_bytes(log.path.read_bytes().replace(b'"i": 1', b'"i": 7'))
    with pytest.raises(InvalidInput, match="line 2"):
        list(log)


# ---------------------------------------------------------------- whole files


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomic(path, "old")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomic(path, b"newest")
    assert path.read_bytes() == b"newest"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["results.json"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_json_with_nan_is_refused_and_nothing_written(tmp_path, bad):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"v": bad})
    assert list(tmp_path.iterdir()) == []


def test_records_need_no_torch():
    code = "import sys, nonsingular.results.surface; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert records.FORMAT == 1
