"""The walk over a grid: what it carries, what it skips, what it keeps, and that the files alone give its numbers again."""

import itertools
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from nonsingular.attacks.apgd import apgd
from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.strongest import alternating, ensemble, strongest, worst
from nonsingular.catalog import Attack, declared
from nonsingular.errors import InvalidInput
from nonsingular.evaluation import walk as nested
from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.problem import Case, Method
from nonsingular.evaluation.stored import FOLDER, Against, read_found, write_found
from nonsingular.evaluation.walk import reach
from nonsingular.network.calling import logits_at, products
from nonsingular.network.margins import is_correct, margins, worst_margin
from nonsingular.results.files import Log
from nonsingular.runs.verify_outcomes import lost_to, stored_perturbations
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import Grid
from nonsingular.threat.perturbation import Perturbation
from sampling import first

SCOPES = ("sample", "batch", "dataset")
COLUMNS, ROWS = (0.0, 0.05, 0.1, 0.2), (0.0, 0.02, 0.05)
GRID = Grid(COLUMNS, ROWS, JointBall(1.0, 1.0))


def seeded(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return model.eval()


def dense():
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)))


def conv():
    return seeded(nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)))


MODELS = {"dense": dense, "conv": conv}


def model_and_examples(kind, n=60):
    model = MODELS[kind]()
    x = torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    return model, x, model(x).argmax(1)


def right(model, y, point):
    return int(is_correct(logits_at(model, point), y).sum())


def lowest(model, y, point):
    return worst_margin(margins(logits_at(model, point), y), y)


# ---------------------------------------------------------------- surfaces


@pytest.mark.parametrize("kind, scope", first(3, itertools.product(MODELS, SCOPES)))
def test_a_surface_never_rises_and_is_not_above_the_paper(kind, scope):
    model, x, y = model_and_examples(kind)
    s = evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, scope=scope, batch_size=20)
    assert s.attack == "strongest"
    assert s.rises == []
    assert s.accuracy[0, 0] == 1
    p = evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, scope=scope, batch_size=20, attack="paper")
    assert s.auc < p.auc
    assert (s.accuracy <= p.accuracy + 1 / 60 + 1e-9).all()


@pytest.mark.parametrize("kind", first(1, MODELS))
def test_who_shares_weights_orders_the_surfaces(kind):
    model, x, y = model_and_examples(kind)
    at = {scope: evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, scope=scope, batch_size=20).accuracy for scope in SCOPES}
    assert (at["sample"] <= at["batch"] + 1 / 60).all()
    assert (at["batch"] <= at["dataset"] + 3 / 60).all()


@pytest.mark.parametrize("scope", SCOPES)
def test_lost_and_certified_examples_are_left_alone(scope):
    model, x, y = model_and_examples("dense")
    seen = []

    def counting(model, x, y, ball, *, scope, start=None):
        seen.append((ball.eps_x, ball.eps_w, len(x)))
        return strongest(model, x, y, ball, scope=scope, start=start)

    counted = Attack("counting", counting, starts=True)
    s = evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, scope=scope, attack=counted, batch_size=60)
    for eps_x, eps_w, n in seen:
        i, j = ROWS.index(eps_w), COLUMNS.index(eps_x)
        before = min([s.accuracy[i - 1, j]] * (i > 0) + [s.accuracy[i, j - 1]] * (j > 0), default=1.0)
        assert before > 0  # nothing is attacked where nothing is left
        if scope == "sample":
            assert n <= round(before * 60)
    if scope == "sample":
        whole = sum(n for *_, n in seen)
        seen.clear()
        c = evaluate(
            model,
            (x, y),
            eps_x=COLUMNS,
            eps_w=ROWS,
            scope=scope,
            attack=counted,
            certify="crown",
        )
        assert sum(n for *_, n in seen) < whole
        np.testing.assert_array_equal(c.accuracy, s.accuracy)


def test_a_point_begins_where_a_smaller_one_ended():
    """An attack that only hands its start back, but finds one perturbation in the smallest ball: it is carried and grows."""
    model, x, y = model_and_examples("dense")
    start = {}

    def lazy(model, x, y, ball, *, scope, start=None):
        start_at[ball.eps_x] = start
        if start is None:
            return joint_pgd(model, x, y, ball, scope=scope)
        return start

    start_at = start
    s = evaluate(model, (x, y), eps_x=[0.05, 0.1], eps_w=[0.02], scope="dataset", attack=Attack("lazy", lazy, starts=True))
    assert start[0.05] is None
    moved = start[0.1].x - x
    assert moved.abs().max() > 0.09  # grown to the larger ball
    assert s.accuracy[0, 1] <= s.accuracy[0, 0]


def test_an_accuracy_that_still_falls_is_flagged():
    """An attack that breaks twelve more examples each time it is called never settles."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).eval()
    with torch.no_grad():  # which side of the mean the pixels lie on
        model[1].weight.copy_(torch.stack([torch.ones(9), -torch.ones(9)]))
        model[1].bias.copy_(torch.tensor([-4.5, 4.5]))
    x = model_and_examples("dense")[1]
    y = model(x).argmax(1)

    def slow(model, x, y, ball, *, scope, start=None):
        done = 0 if start is None else int((start.x != x).flatten(1).any(1).sum())
        now = x.clone()
        now[: done + 12] = 1 - x[: done + 12]
        return Perturbation(now, {}, scope)

    s = evaluate(model, (x, y), eps_x=[1.0], eps_w=[0.0], scope="dataset", attack=Attack("slow", slow, starts=True))
    assert s.flags[0, 0] == ("moving",)
    assert s.accuracy.item() == (60 - 2 * 12) / 60  # two rounds


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    "kind, scope, attack", first(4, [("dense", "batch", "paper"), *itertools.product(MODELS, SCOPES, ["strongest"])])
)
def test_the_files_alone_give_the_surface_again(kind, scope, attack, tmp_path):
    model, x, y = model_and_examples(kind)
    s = evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, scope=scope, batch_size=20, attack=attack, log=tmp_path / "log.jsonl")
    job = asked(model, x, y, Method.of(attack, scope, 20))
    stored = stored_perturbations(job, tmp_path / FOLDER)
    assert stored
    np.testing.assert_array_equal(lost_to(stored, job, tmp_path / "log.jsonl"), ~s.outcomes)


def asked(model, x, y, method):
    """The question of a surface, as verification has it of a run."""
    return SimpleNamespace(case=Case.of(model, x, y), grid=GRID, method=method)


def test_a_kept_perturbation_outside_its_ball_is_refused(tmp_path):
    model, x, y = model_and_examples("dense")
    evaluate(model, (x, y), eps_x=COLUMNS, eps_w=ROWS, log=tmp_path / "log.jsonl")
    (path,) = (tmp_path / FOLDER).glob("*.safetensors")
    found = read_found(path, Against.of(Case.of(model, x, y), GRID))
    assert any("shifts.0" in f.tensors for f in found)  # one number a neuron, not a matrix an example
    for f in found:
        f.tensors["x"].add_(0.5)
    write_found(path, found)
    with pytest.raises(InvalidInput, match="a stored perturbation is not within"):
        stored_perturbations(asked(model, x, y, Method.of()), tmp_path / FOLDER)
    path.write_bytes(b"no tensors")
    with pytest.raises(InvalidInput, match="cannot be read as stored perturbations"):
        stored_perturbations(asked(model, x, y, Method.of()), tmp_path / FOLDER)


@pytest.mark.parametrize("scope", first(1, SCOPES[::-1]))
def test_an_interrupted_walk_goes_on_to_the_same_bits(scope, tmp_path):
    model, x, y = model_and_examples("dense", 250)
    options = {"eps_x": COLUMNS, "eps_w": ROWS, "scope": scope, "batch_size": 100}
    whole = evaluate(model, (x, y), **options, log=tmp_path / "whole" / "log") if (tmp_path / "whole").mkdir() is None else None
    calls = itertools.count()

    class Stop(Exception):
        pass

    def stopping(model, x, y, ball, *, scope, start=None):
        if next(calls) == 5:
            raise Stop
        return strongest(model, x, y, ball, scope=scope, start=start)

    (tmp_path / "cut").mkdir()
    log = tmp_path / "cut" / "log"
    entries = (tmp_path / "whole" / "log").read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(entries[: len(entries) // 2]))
    (tmp_path / "whole" / FOLDER).rename(tmp_path / "cut" / FOLDER)
    again = evaluate(model, (x, y), **options, log=log)
    np.testing.assert_array_equal(again.accuracy, whole.accuracy)

    def bits(path):
        """Of each cell what the log says last: a sweep whose perturbations were lost is done, and said, again."""
        return {(c["eps_w"], c["eps_x"]): (c["correct"], c["margins"]) for e in Log(path) for c in e["cells"]}

    assert bits(log) == bits(tmp_path / "whole" / "log")


# ---------------------------------------------------------------- attacks of attacks


@pytest.mark.parametrize("kind, scope", list(itertools.product(MODELS, SCOPES)))
def test_the_strongest_is_not_above_its_members(kind, scope):
    model, x, y = model_and_examples(kind)
    ball = JointBall(0.1, 0.04)
    point = strongest(model, x, y, ball, scope=scope).check(model, x, ball)
    for part in ((1.0, 0.0), (0.0, 1.0)):
        alone = strongest(model, x, y, ball.scaled(*part), scope=scope)
        assert right(model, y, point) <= right(model, y, alone)
    together = ensemble(partial(joint_pgd, steps=10), apgd)(model, x, y, ball, scope=scope)
    for member in (partial(joint_pgd, steps=10), apgd):
        found = member(model, x, y, ball, scope=scope)
        assert right(model, y, together) <= right(model, y, found)
        if scope == "sample":
            assert (lowest(model, y, together) <= lowest(model, y, found) + 1e-5).all()


@pytest.mark.parametrize("scope, first", list(itertools.product(SCOPES, ["inputs", "weights"])))
def test_attacks_in_turn(scope, first):
    model, x, y = model_and_examples("dense")
    ball = JointBall(0.3, 0.2)
    one = alternating(model, x, y, ball, scope=scope, first=first, rounds=1)
    more = alternating(model, x, y, ball, scope=scope, first=first, rounds=3)
    assert right(model, y, more) <= right(model, y, one) < right(model, y, Perturbation(x))
    assert right(model, y, one) <= right(model, y, apgd(model, x, y, ball.scaled(0.0, 1.0), scope=scope)) or first == "inputs"
    with pytest.raises(InvalidInput, match="rounds is 0"):
        alternating(model, x, y, ball, rounds=0)


def test_an_ensemble_by_its_names():
    model, x, y = model_and_examples("dense")
    s = evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.02], attack="paper+apgd")
    assert s.attack == "paper+apgd"
    for name in ("paper", "apgd"):
        assert s.accuracy.item() <= evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.02], attack=name).accuracy.item()
    with pytest.raises(InvalidInput, match="no attack 'papr'"):
        Method.of("paper+papr")
    with pytest.raises(InvalidInput, match="no attacks"):
        ensemble()


def test_the_worst_of_points():
    model, x, y = model_and_examples("dense")
    a, b = (strongest(model, x, y, JointBall(r, 0.0)) for r in (0.05, 0.1))
    both = worst(model, y, a, b)
    assert torch.equal(lowest(model, y, both), torch.minimum(lowest(model, y, a), lowest(model, y, b)))


@pytest.mark.parametrize("scope", ["batch", "dataset"])
@pytest.mark.parametrize("radii", [(0.1, 0.0), (0.0, 0.05), (0.1, 0.05)])
def test_one_shared_w_beats_the_paper_on_digits(scope, radii, digits_model):
    model, x, y = digits_model
    ball = JointBall(*radii)
    ours, papers = (right(model, y, f(model, x, y, ball, scope=scope)) for f in (apgd, joint_pgd))
    assert ours <= papers + 2


@pytest.fixture(scope="module")
def digits_model():
    from nonsingular.data.datasets import load
    from nonsingular.models.architectures import mlp
    from nonsingular.training.train import train

    data = load("digits")
    torch.manual_seed(0)
    model = train(mlp((1, 8, 8), 10, hidden=(32, 16)), data, epochs=15).model
    return model, data.test.x, data.test.y


def test_a_group_is_judged_from_its_tensors():
    model, x, y = model_and_examples("dense")
    r = reach(Case.of(model, x, y), GRID, Method.of(scope="dataset"), (0.1, 0.02))
    assert torch.equal(r.correct, is_correct(logits_at(model, r.point), y))
    assert r.origin == (0.1, 0.02)


# ---------------------------------------------------------------- precision


class Noting(nn.Sequential):
    """Notes the precision of products at each pass, by whether it is one for a gradient."""

    seen: ClassVar[set[tuple[str, bool]]] = set()

    def forward(self, input):
        self.seen.add((torch.get_float32_matmul_precision(), torch.is_grad_enabled() and input.requires_grad))
        return super().forward(input)


@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_products_are_rough_where_points_are_sought_and_exact_where_they_are_judged(scope):
    model = Noting(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    Noting.seen.clear()
    nested.reach(Case.of(model, x, y), GRID, Method.of(scope=scope), (0.1, 0.1))
    assert torch.get_float32_matmul_precision() == "highest"
    if scope != "sample":  # a dense network is not called in scope sample: its layers are read
        assert {p for p, gradient in Noting.seen if gradient} == {"medium"}
    Noting.seen.clear()
    with products("medium"):
        logits_at(model, Perturbation(x))
    assert {p for p, _ in Noting.seen} == {"highest"}


def test_the_precision_of_products_is_given_back():
    def fails():
        with products("medium"):
            assert torch.get_float32_matmul_precision() == "medium"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_precision_that_the_caller_set_for_one_backend_is_left_alone():
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this torch has one setting for all backends")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with products("highest"):
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert torch.get_float32_matmul_precision() == "highest"


def test_arguments_of_a_users_function_count_with_a_warning_and_a_declared_attack_needs_none():
    def mine(model, x, y, ball, *, scope, start=None, steps=7):
        return Perturbation(x.clone(), {}, scope)

    with pytest.warns(DeprecationWarning, match=r"nonsingular.Attack\('mine', mine, starts=True, steps=7\)"):
        found = declared(mine)
    assert (found.name, found.starts, found.steps) == ("mine", True, 7)
    assert declared(found) is found
    plain = declared(lambda model, x, y, ball, *, scope: None)
    assert not plain.starts and plain.steps is None


def test_functions_of_the_catalog_are_known_as_what_they_are_also_with_arguments():
    found = declared(partial(strongest))
    assert found.starts and not found.raw
    assert declared(joint_pgd).steps == 100 and not declared(joint_pgd).starts
    few = declared(partial(joint_pgd, steps=3))
    assert (few.name, few.steps) == ("joint_pgd(steps=3)", 3)  # masking doubles these, not the 100 of the catalog
