"""Certified surfaces, and what happens where an attack beats a certificate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from nonsingular.catalog import BOUNDS
from nonsingular.certificates.certify import certify
from nonsingular.errors import InvalidInput, SoundnessError, UnsupportedModel
from nonsingular.evaluation import certified as sandwich
from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.certified import certified_part, certified_surface
from nonsingular.evaluation.problem import Case
from nonsingular.models.architectures import conv, mlp
from nonsingular.results.surface import Cell, Surface
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import Grid

COLUMNS, ROWS = (0.0, 0.02, 0.05, 0.1), (0.0, 0.01, 0.03)


def small(seed: int = 0, n: int = 15) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = mlp((4,), 3, hidden=(8, 6), bias=True).eval()
    x = torch.rand(n, 4)
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 3
    return model, x, y


def test_the_walk_finds_what_certifying_each_cell_finds():
    """Bounds of these networks fall with the radii, so walking along the border loses nothing."""
    for seed in range(4):
        model, x, y = small(seed)
        s = certified_surface(model, (x, y), eps_x=COLUMNS, eps_w=ROWS)
        each = [[certify(model, x, y, JointBall(c, r), bound="crown").accuracy for c in COLUMNS] for r in ROWS]
        np.testing.assert_allclose(s.accuracy, each)
        assert s.kind == "certified"
        assert s.attack == "crown"
        assert not s.rises


def test_each_example_is_bounded_at_few_points(bounded):
    asked = bounded("crown")
    model, x, y = small()
    certified_surface(model, (x, y), eps_x=COLUMNS, eps_w=ROWS)
    assert 0 < sum(asked) <= (len(COLUMNS) + len(ROWS)) * len(x)


def test_certified_lies_below_attacked_and_is_carried_by_the_surface(tmp_path):
    model, x, y = small()
    s = evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, certify="best", log=tmp_path / "log")
    assert s.kind == "attacked"
    assert s.certified is not None
    assert (s.certified.accuracy <= s.accuracy).all()
    assert 0 < s.certified.auc <= s.auc
    again = Surface.from_dict(json.loads(json.dumps(s.to_dict())))
    assert again.certified is not None
    np.testing.assert_array_equal(again.certified.accuracy, s.certified.accuracy)
    assert "certified by best" in str(s)
    alone = certified_surface(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, bound="best")
    np.testing.assert_array_equal(alone.accuracy, s.certified.accuracy)


@pytest.mark.parametrize("scope", ["batch", "dataset"])
def test_a_certificate_lies_below_attacks_of_every_scope(scope):
    model, x, y = small()
    s = evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, certify="crown", scope=scope)
    assert s.certified is not None
    assert (s.certified.accuracy <= s.accuracy).all()


def test_convolutions_and_all_parameters():
    torch.manual_seed(0)
    model = conv((1, 6, 6), 3, hidden=(2,)).eval()
    x = torch.rand(4, 1, 6, 6)
    y = model(x).argmax(1)
    s = evaluate(model, (x, y), eps_x=[0.0, 0.01], eps_w=[0.0, 0.005], certify="crown", moves="all")
    assert s.certified is not None
    assert s.certified.accuracy[0, 0] == 1.0
    assert (s.certified.accuracy <= s.accuracy).all()


# --- the log --------------------------------------------------------------------------------------------------------------------


def test_finished_parts_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sandwich, "TOGETHER", 4)
    model, x, y = small()
    log = tmp_path / "log"
    whole = certified_surface(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    log.write_bytes(b"".join(lines[:2]) + lines[2][:30])
    done = []
    original = sandwich.certified_part
    monkeypatch.setattr(sandwich, "certified_part", lambda *a: done.append(a[3]) or original(*a))
    again = certified_surface(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, log=log)
    assert done == [(8, 12), (12, 15)]
    np.testing.assert_array_equal(again.accuracy, whole.accuracy)
    certified_surface(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, bound="interval", log=log)
    assert len(done) == 6


# --- a bound that is wrong ------------------------------------------------------------------------------------------------------


def wrong(model, x, y, ball):
    return torch.full((len(x), 3), 50.0, dtype=x.dtype).scatter(1, y[:, None], 0.0)


@pytest.fixture
def wrong_bound(put_bound):
    put_bound("crown", wrong)


def test_a_bound_above_an_attack_fails_the_run_and_saves_the_case(wrong_bound, tmp_path):
    model, x, y = small()
    with pytest.raises(SoundnessError) as caught:
        evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, certify="crown", log=tmp_path / "log")
    e = caught.value
    assert e.certified == 50.0
    assert e.attacked < 50
    assert "please report" in str(e)
    with np.load(e.saved) as stored:
        case = dict(stored)
    np.testing.assert_allclose(case["x"], x[e.example])
    weights = {k.removeprefix("weights."): torch.as_tensor(case[k]) for k in case if k.startswith("weights.")}
    f = torch.func.functional_call(model, weights, (torch.as_tensor(case["x_adv"])[None],))[0]
    label = int(case["y"])
    f = f.detach()
    reached = min(float(f[label] - f[j]) for j in range(3) if j != label)
    assert reached == pytest.approx(e.attacked, abs=1e-4)


def test_without_a_log_the_case_is_only_told(wrong_bound):
    model, x, y = small()
    with pytest.raises(SoundnessError, match="certified to be at least 50"):
        evaluate(model, (x, y), eps_x=[0.0, 0.01], eps_w=[0.0, 0.01], certify="crown")


def test_a_kept_certificate_is_held_against_a_new_attack(wrong_bound, tmp_path):
    """The log says that everything is certified; then an attack is run."""
    model, x, y = small()
    log = tmp_path / "log"
    certified_surface(model, (x, y), eps_x=[0.0, 3.0], eps_w=[0.0, 3.0], log=log)
    with pytest.raises(SoundnessError):
        evaluate(model, (x, y), eps_x=[0.0, 3.0], eps_w=[0.0, 3.0], certify="crown", log=log)


def test_an_error_travels_between_processes():
    import pickle

    e = pickle.loads(pickle.dumps(SoundnessError(3, 0.1, 0.2, 1.0, -1.0)))
    assert (e.example, e.eps_x, e.eps_w, e.certified, e.attacked) == (3, 0.1, 0.2, 1.0, -1.0)


def test_what_an_attack_broke_is_not_bounded(bounded):
    asked = bounded("crown")
    model, x, y = small()
    broken = np.full((3, 4, 15), -1.0, dtype=np.float32)
    grid = Grid(COLUMNS, ROWS, JointBall(1.0, 1.0))
    _, held, _ = certified_part(Case.of(model, x, y), grid, BOUNDS["crown"], (0, 15), broken)
    assert not held.any()
    assert not asked


def test_margins_of_cells_without_a_record_are_infinite():
    cells = [Cell(0.0, 0.0, np.array([True, False]))]
    grid = Grid((0.0,), (0.0,), JointBall(1.0, 1.0))
    np.testing.assert_array_equal(sandwich.margins_of(cells, grid)[0, 0], [np.inf, -np.inf])


def test_what_cannot_be_certified_is_refused_before_any_attack(tmp_path):
    model, x, y = small()
    with pytest.raises(InvalidInput, match="may not certify"):
        evaluate(model, (x, y), eps_x=0.1, eps_w=0.1, certify="theorem1-printed", log=tmp_path / "log")
    with pytest.raises(InvalidInput, match="crown"):
        certified_surface(model, (x, y), eps_x=0.1, eps_w=0.1, bound="crwn")
    odd = nn.Sequential(nn.Linear(4, 3), nn.Mish()).eval()
    with pytest.raises(UnsupportedModel, match="mish"):
        evaluate(odd, (x, odd(x).argmax(1)), eps_x=0.1, eps_w=0.1, attack="paper", certify="crown", log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_what_an_attack_reached_in_a_smaller_ball_counts_in_larger_ones():
    """The attack broke everything at eps_x = 0, and found nothing at 0.02: no certificate may stand there."""
    model, x, y = small()
    n = len(x)
    cells = [
        Cell(c, r, np.full(n, c > 0), margins=np.full(n, 5.0 if c > 0 else -1.0, dtype=np.float32))
        for r in (0.0, 0.01)
        for c in (0.0, 0.02)
    ]
    grid = Grid((0.0, 0.02), (0.0, 0.01), JointBall(1.0, 1.0))
    s = sandwich.prove(Case.of(model, x, y), grid, BOUNDS["crown"], attacked=cells).under(cells).surface()
    assert s.accuracy.max() == 0


def test_the_border_is_held_against_the_attack(put_bound):
    """A bound that is right where attacks failed, and wrong where they won: the one point beside the border tells."""
    model, x, y = small()

    def wrong_beyond(model, x, y, ball):
        return wrong(model, x, y, ball) if ball.eps_x > 0.04 else real(model, x, y, ball)

    real = put_bound("crown", wrong_beyond)
    margins = np.full((1, 3, len(x)), 60.0, dtype=np.float32)
    margins[:, 2] = -1.0
    grid = Grid((0.0, 0.001, 0.05), (0.0,), JointBall(1.0, 1.0))
    with pytest.raises(SoundnessError):
        certified_part(Case.of(model, x, y), grid, BOUNDS["crown"], (0, len(x)), margins)
