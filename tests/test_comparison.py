"""Paired comparisons against hand numbers, SciPy and simulation; gates and their exit codes."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy import stats

from nonsingular.cli.main import main
from nonsingular.errors import InvalidInput
from nonsingular.results.comparison import compare, per_example
from nonsingular.results.gates import Gate, check, junit
from nonsingular.results.statistics import holm, mcnemar
from nonsingular.results.surface import Surface

X, W = (0.0, 0.1, 0.2), (0.0, 0.01)


def surface(outcomes, name="m", **more):
    outcomes = np.asarray(outcomes, dtype=bool)
    about = {"data_sha256": "d"} | more.pop("about", {})
    return Surface(
        X, W, outcomes.mean(2), outcomes.shape[2], "sample", "a", name, about=about, outcomes=outcomes, **more
    )  # fmt: skip


def random_surface(seed, shift=0.0, n=80, name="m"):
    """Each example has a strength of its own, the same for every `shift`: what a pairing can use."""
    g = np.random.default_rng(seed)
    strength = g.normal(size=n) + shift
    size = np.add.outer(np.array(W) / 0.01, np.array(X) / 0.1)
    return surface(strength[None, None] > size[..., None] - 1, name)


def test_the_area_is_the_mean_of_the_examples_areas():
    s = random_surface(0)
    assert per_example(s).mean() == pytest.approx(s.auc, abs=1e-12)
    # one example that survives at eps_w = 0 alone, up to eps_x = 0.1: trapezoid weights (1/4, 1/2, 1/4) and (1/2, 1/2)
    one = surface([[[1], [1], [0]], [[0], [0], [0]]])
    assert per_example(one) == pytest.approx([0.375])


def test_a_paired_difference_is_found_where_the_areas_alone_overlap():
    a, b = random_surface(1), random_surface(1, 0.2, name="b")
    found = compare(a, b)
    assert found.difference == pytest.approx(b.auc - a.auc)
    assert found.low > 0
    assert found.p < 0.01
    unpaired = stats.ttest_ind(per_example(a), per_example(b)).pvalue
    assert unpaired > 0.05
    back = compare(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))
    assert (back.better, back.worse) == (found.worse, found.better)


def test_the_interval_is_that_of_the_paired_t_test_for_many_examples():
    a, b = random_surface(2, n=5000), random_surface(2, 0.05, n=5000)
    low, high = stats.ttest_rel(per_example(b), per_example(a)).confidence_interval()
    found = compare(a, b)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)


def test_a_surface_does_not_differ_from_itself():
    s = random_surface(3)
    found = compare(s, s)
    assert (found.difference, found.p, found.better, found.worse) == (0, 1, 0, 0)


def test_equal_models_seldom_differ():
    """200 pairs of independent surfaces of one distribution: the test at 5 % rejects about 5 % of them."""
    rejected = sum(compare(random_surface(i), random_surface(10_000 + i)).p < 0.05 for i in range(200))
    assert rejected <= 22  # P(more | 5 %) < 0.2 %


@pytest.mark.parametrize("up, down", [(0, 0), (1, 0), (7, 2), (2, 7), (30, 30), (400, 340), (0, 12)])
def test_mcnemar_is_the_two_sided_binomial_test(up, down):
    mine = mcnemar(np.array([[up]]), np.array([[down]]))[0, 0]
    assert mine == pytest.approx(stats.binomtest(min(up, down), up + down, 0.5).pvalue if up + down else 1.0, abs=1e-9)


def test_holm_by_hand():
    # 0.01 x 3, then 0.02 x 2, then 0.5 x 1; never falling
    np.testing.assert_allclose(holm(np.array([[0.02, 0.5, 0.01]])), [[0.04, 0.5, 0.03]])
    np.testing.assert_allclose(holm(np.array([[0.04, 0.03]])), [[0.06, 0.06]])


@pytest.mark.parametrize(
    "change, word",
    [
        ({"eps_x": (0.0, 0.1, 0.3)}, "eps_x"),
        ({"eps_w": (0.0, 0.02)}, "eps_w"),
        ({"scope": "dataset"}, "scope"),
        ({"kind": "certified"}, "kind"),
        ({"about": {"data_sha256": "other"}}, "data_sha256"),
        ({"outcomes": None}, "outcomes"),
    ],
)
def test_what_cannot_be_paired_is_refused(change, word):
    s = random_surface(4)
    with pytest.raises(InvalidInput, match=word):
        compare(s, Surface(**{**vars(s), **change}))


# ---------------------------------------------------------------- gates


def results(*surfaces):
    return {"models": {s.model: {"seeds": [0], "surfaces": [s.to_dict()]} for s in surfaces}}


def test_a_gate_is_met_at_its_number_and_missed_above():
    s = random_surface(5)
    accuracy = float(s.accuracy[1, 1])
    for least, passed in ((accuracy, True), (accuracy + 1e-6, False)):
        (outcome,) = check(results(s), [Gate.at_point(f"eps_w=0.01, eps_x=0.1:{least!r}")])
        assert outcome.passed == passed
        assert outcome.found == accuracy
    assert [o.passed for o in check(results(s), [Gate(s.auc), Gate(min(1, s.auc + 0.01))])] == [True, False]


def test_the_lower_end_of_the_interval_is_held_against_the_gate_on_request():
    s = random_surface(6)
    gates = [Gate(s.auc - 0.01), Gate(s.accuracy[0, 0] - 0.01, point=(0.0, 0.0))]
    assert [o.passed for o in check(results(s), gates)] == [True, True]
    assert [o.passed for o in check(results(s), gates, interval=True)] == [False, False]
    low = check(results(s), gates, interval=True)[1].found
    assert low == s.interval[0][0, 0]


def test_certified_gates_read_the_certified_surface():
    s = random_surface(7)
    below = surface(s.outcomes & (np.arange(80) % 2 == 0), kind="certified")
    both = surface(s.outcomes, certified=below)
    found = check(results(both), [Gate(0, "certified"), Gate(0), Gate.at_point("eps_x=0,eps_w=0:0", "certified")])
    assert [o.found for o in found] == pytest.approx([below.auc, s.auc, below.accuracy[0, 0]])
    with pytest.raises(InvalidInput, match="--certify"):
        check(results(s), [Gate(0, "certified")])


@pytest.mark.parametrize(
    "text", ["", "0.4", "eps_x=0.1:0.4", "eps_x=0.1,eps_w=0.1", "eps_x=a,eps_w=0:0.4", "eps_x=0,eps_w=0:x", "eps_x=0,eps_y=0:1",
             "eps_x=0,eps_w=0,more=1:0.3", "eps_x=0,eps_w=0:1.5", "eps_x=0,eps_w=0:-1", "eps_x=0,eps_w=0:nan"],
)  # fmt: skip
def test_a_malformed_gate_is_named(text):
    with pytest.raises(InvalidInput):
        Gate.at_point(text)


def test_a_point_beside_the_grid_is_refused_with_the_grid():
    with pytest.raises(InvalidInput, match=r"eps_x is one of 0, 0\.1, 0\.2"):
        check(results(random_surface(8)), [Gate.at_point("eps_x=0.15,eps_w=0.01:0.1")])


def test_junit_counts_and_names_failures():
    s = random_surface(9)
    text = junit("runs/<a>", check(results(s), [Gate(0.0), Gate(1.0)]))
    suite = ET.fromstring(text)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert suite.get("name") == "nonsingular check runs/<a>"
    failed = [case.find("failure") is not None for case in suite.findall("testcase")]
    assert failed == [False, True]


# ---------------------------------------------------------------- from the command line


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("standard", "at"):
            train = ["train", "--data", "digits", "--method", method, "--epochs", "4", "--hidden", "12", "--quiet"]
            assert main([*train, "--out", method]) == 0
            grid = ["--eps-x", "0,0.05,0.1", "--eps-w", "0,0.02", "--limit", "200", "--certify", "interval", "--workers", "1"]
            assert main(["evaluate", method, *grid, "--quiet", "--out", f"{method}-run"]) == 0
    return folder


def test_two_runs_are_compared(two_runs, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    assert main(["compare", "standard-run", "at-run", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    a, b = (json.loads((two_runs / f"{m}-run/results.json").read_text())["models"][m]["auc"][0] for m in ("standard", "at"))
    assert found["auc"] == [a, b]
    assert found["names"] == ["standard-run", "at-run"]
    assert found["n"] == 200
    assert main(["compare", "standard-run", "at-run"]) == 0
    assert "at-run" in capsys.readouterr().out


def test_gates_decide_the_exit_code(two_runs, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    assert main(["check", "at-run", "--min-auc", "0", "--min-certified", "eps_x=0,eps_w=0:0.3", "--junit", "j.xml"]) == 0
    assert ET.parse("j.xml").getroot().get("failures") == "0"
    argv = ["check", "at-run", "--min-auc", "0.999", "--min-accuracy", "eps_x=0,eps_w=0:0.1", "--junit", "j.xml"]
    capsys.readouterr()
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out.count("FAILED") == 1
    assert out.count("passed") == 1
    assert err == "error: 1 of 2 gates missed\n"
    assert ET.parse("j.xml").getroot().get("failures") == "1"


@pytest.mark.parametrize(
    "argv, word",
    [
        (["compare", "at-run"], "two or more"),
        (["compare", "at-run", "at-run"], "twice"),
        (["compare", "at-run", "nowhere"], "results.json"),
        (["compare", "at-run", "at"], "results.json"),
        (["check", "at-run"], "nothing to check"),
        (["check", "at-run", "--min-auc", "2"], "from 0 to 1"),
        (["check", "at-run", "--min-accuracy", "0.4"], "eps_x=0.1,eps_w=0.005:0.4"),
        (["check", "at-run", "--min-accuracy", "eps_x=0.07,eps_w=0:0.4"], "grid"),
        (["check", "at", "--min-auc", "0.1"], "results.json"),
        (["check", "at-run", "--min-auc", "0", "--junit", "no/where/j.xml"], "no/where/j.xml"),
        (["verify", "at"], "results.json"),
        (["verify", "nowhere"], "results.json"),
    ],
)
def test_mistakes_are_told_in_one_line(two_runs, argv, word, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert word in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_is_verified_and_a_changed_number_is_not(two_runs, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    assert main(["verify", "at-run"]) == 0
    assert "break exactly the examples that count as lost" in capsys.readouterr().out
    path = two_runs / "at-run/results.json"
    text = path.read_text()
    results = json.loads(text)
    results["models"]["at"]["surfaces"][0]["accuracy"][1][2] += 0.05
    path.write_text(json.dumps(results))
    try:
        assert main(["verify", "at-run"]) == 1
        err = capsys.readouterr().err
        assert "accuracy[1][2]" in err
    finally:
        path.write_text(text)
