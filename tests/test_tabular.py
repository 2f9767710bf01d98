"""Tables: a radius for each column, networks with one logit, names of classes and columns of CSV files."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import nonsingular as ns
from nonsingular.attacks.apgd import apgd
from nonsingular.attacks.square import square
from nonsingular.bounds.exact import solve
from nonsingular.bounds.theorem import tau, theorem1
from nonsingular.catalog import ATTACKS, BOUNDS, UNSOUND, lookup
from nonsingular.cli.main import main
from nonsingular.evaluation.masking import masking
from nonsingular.network.calling import logits_at
from nonsingular.network.dense import dense_chain
from nonsingular.network.graph import trace_graph
from nonsingular.network.heads import classifier
from nonsingular.network.margins import margins, worst_margin
from nonsingular.report.figure import x_label
from nonsingular.settings import EvaluateSettings, checked
from nonsingular.threat.ball import JointBall
from nonsingular.threat.columns import by_column, moving
from nonsingular.threat.interval import Interval

SOUND = [b for b in BOUNDS if b not in UNSOUND]
RADII = torch.tensor([0.3, 0.0, 5.0], dtype=torch.float64)
"""Columns in units of their own; the second one is fixed."""
NAMED = {"age": 0.3, "income": 5.0}


def net(outputs: int = 3, *, seed: int = 0) -> nn.Sequential:
    """Three columns, of which the last has values about 20 times as large."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, outputs)).eval()
    with torch.no_grad():
        model[0].weight[:, 2] /= 20
    return model


def conv() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def rows(n: int = 6) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 1.0, 20.0])


def ends(box: Interval) -> list[Tensor]:
    """All corners (B, d) of a box of vectors."""
    choices = itertools.product((False, True), repeat=box.lo.shape[1])
    return [torch.where(torch.tensor(high), box.hi, box.lo) for high in choices]


def lowest(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, draws: int = 200) -> Tensor:
    """(B, K) the smallest margins found over all corners of the inputs, with W and with random corners of the weights."""
    generator, found = torch.Generator().manual_seed(3), []
    boxes = ball.weight_boxes(dict(model.named_parameters()))
    points = ends(ball.input_box(x)) if x.dim() == 2 else [ball.input_box(x).sample(generator) for _ in range(30)]
    moved = torch.cat(points)
    for draw in range(draws if boxes else 1):
        weights = {
            n: torch.where(torch.rand(b.lo.shape, generator=generator) < 0.5, b.hi, b.lo) for n, b in boxes.items() if draw
        }
        logits = functional_call(model, weights, (moved,)).detach()
        found += margins(logits, y.repeat(len(points))).split(len(x))
    return torch.stack(found).amin(0)


# --- a radius for each element of the input -------------------------------------------------------------------------------


def test_a_ball_with_radii_by_column_is_a_value() -> None:
    ball = JointBall(np.array([0.5, 0.0, 2.0]), 0.1, None)
    again = JointBall(torch.tensor([0.5, 0.0, 2.0]), 0.1, None)
    assert ball == again == pickle.loads(pickle.dumps(ball)) == ball.scaled(1, 1)
    assert hash(ball) == hash(again)
    assert ball != JointBall([0.5, 0.0, 2.5][2], 0.1, None)
    assert ball != ball.scaled(0.5, 1)
    assert ball.moves_inputs
    assert not ball.scaled(0, 1).moves_inputs
    box = ball.scaled(2, 1).input_box(torch.zeros(1, 3))
    assert box.hi.tolist() == [[1.0, 0.0, 4.0]]
    assert ball.describe()["eps_x_per_element"]["largest"] == 2.0
    assert "eps_x_per_element" not in JointBall(0.5, 0.1).describe()


def test_a_pair_moves_further_on_one_side() -> None:
    ball = JointBall((0.0, torch.tensor([1.0, 2.0])), 0.0, None)
    box = ball.input_box(torch.zeros(1, 2))
    assert (box.lo.tolist(), box.hi.tolist()) == ([[0, 0]], [[1, 2]])
    assert torch.equal(torch.as_tensor(ball.reach(torch.zeros(1, 2))), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("radius", [torch.ones(4), torch.ones(2, 3)])
def test_radii_of_another_shape_are_refused(radius: Tensor) -> None:
    x, y = rows(), torch.zeros(6, dtype=torch.long)
    with pytest.raises(ns.InvalidInput, match=r"does not broadcast to the shape of one input, \(3,\)"):
        ns.certify(net(), x, y, JointBall(radius, 0.0, None))
    with pytest.raises(ns.InvalidInput, match="0 or larger"):
        JointBall(torch.tensor([1.0, -1.0]), 0.0)


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_moves_each_column_by_its_own_radius(name: str, scope: Any) -> None:
    if name == "neuron" and scope == "batch":
        pytest.skip("gives each example its own weights")
    model, x = net(), rows()
    y = model(x).argmax(1)
    ball = JointBall(RADII, 0.02, None)
    point = lookup(ATTACKS, name, "attack")(model, x, y, ball, scope=scope)
    moved = (point.x - x).abs().amax(0)
    assert moved[1] == 0
    assert (moved <= RADII + 1e-6).all()
    if name not in ("corners", "paper"):  # the one moves weights alone, the step of the other is 0.01 in every unit
        assert (moved[[0, 2]] > 0.5 * RADII[[0, 2]]).all()


def test_attacks_reach_the_worst_corner() -> None:
    model, x = net(), rows()
    y = model(x).argmax(1)
    ball = JointBall(RADII, 0.0, None)
    worst = worst_margin(lowest(model, x, y, ball), y)
    for attack in (apgd, ns.neuron_pgd, ns.strongest):
        options: dict[str, Any] = {"verdict": False} if attack is apgd else {}
        reached = worst_margin(margins(logits_at(model, attack(model, x, y, ball, **options)), y), y)
        broken = (reached < 0) == (worst < 0)
        assert broken.all(), attack
    point = square(model, x, y, JointBall(RADII * 0.05, 0.0, None), steps=50)
    assert ((point.x - x).abs() <= 0.05 * RADII + 1e-6).all()


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("eps_w", [0.0, 0.02])
def test_every_bound_covers_the_corners_and_knows_what_is_fixed(name: str, eps_w: float) -> None:
    model, x = net().double(), rows(4).double()
    y = model(x).argmax(1)
    bound = lookup(BOUNDS, name, "bound")
    ball = JointBall(RADII * 0.2, eps_w, None)
    with torch.no_grad():
        low = bound(model, x, y, ball)
        assert (low <= lowest(model, x, y, ball) + 1e-9).all()
        uniform = bound(model, x, y, JointBall(RADII.max().item() * 0.2, eps_w, None))
        assert (low >= uniform - 1e-9).all()
        assert (low > uniform + 1e-3).any()
        one = bound(model, x, y, JointBall(torch.full((3,), 0.1, dtype=torch.float64), eps_w, None))
        assert torch.allclose(one, bound(model, x, y, JointBall(0.1, eps_w, None)), atol=2e-6)


def test_bounds_of_images_with_a_mask() -> None:
    model, x = conv().double(), torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(4)).double()
    y = model(x).argmax(1)
    mask = torch.zeros(1, 3, 3)
    mask[:, :, 0] = 0.2
    reached = lowest(model, x, y, JointBall(mask, 0.01), 30)
    for name in ("interval", "crown"):
        low = ns.certify(model, x, y, JointBall(mask, 0.01), bound=name).margins
        assert (low <= reached + 1e-9).all()
        assert torch.equal(
            ns.certify(model, x, y, JointBall(0 * mask, 0.01), bound=name).margins,
            ns.certify(model, x, y, JointBall(0.0, 0.01), bound=name).margins,
        )


def test_tau_by_hand_with_a_radius_for_each_column() -> None:
    # rows of |W1| times r: 1*.1 + 2*1 = 2.1 and 0*.1 + 1*1 = 1; ||W2_0 - W2_1||_1 = 2  ->  tau = 2 * 2.1
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    ball = JointBall(torch.tensor([0.1, 1.0]), 0.0, None)
    assert tau(model, ball, (2,))[0, 1].item() == pytest.approx(4.2)
    # behind a normalisation the second column moves by 1 / 2: 1*.1 + 2*.5 = 1.1
    scaled = ns.Normalized(model, 1e6, torch.tensor([1.0, 2.0]))
    assert tau(scaled, ball, (2,))[0, 1].item() == pytest.approx(2.2)
    with pytest.raises(ns.InvalidInput, match="shape of one input"):
        tau(model, ball)


def test_certified_radius_along_the_inputs_is_a_fraction() -> None:
    model, x = net(), rows()
    y = model(x).argmax(1)
    part = ns.certified_radius(model, x, y, JointBall(RADII, 0.0, None), along="eps_x", bits=5)
    assert (part <= 1).all()
    assert ns.certify(model, x, y, JointBall(RADII * part.max(), 0.0, None), bound="crown").verified[part.argmax()]
    front = ns.certified_front(model, x, y, JointBall(RADII, 0.02, None), eps_x=[0.0, 0.5, 1.0], bits=3)
    same = ns.certified_front(model, x, y, JointBall(RADII * 0.5, 0.02, None), eps_x=[0.0, 1.0], bits=3)
    assert torch.equal(front.eps_w[1].nan_to_num(-1), same.eps_w[1].nan_to_num(-1))


def test_masking_and_training_with_radii_by_column() -> None:
    model, x = net(), rows(20)
    y = model(x).argmax(1)
    assert masking(model, (x, y), JointBall(RADII * 0.3, 0.01, None), attack="apgd", limit=10).numbers
    with pytest.raises(ns.InvalidInput, match="one eps_x for all elements"):
        ns.train(model, (x, y), method="at", eps_x=RADII, domain=None)  # type: ignore[arg-type]


# --- by name ----------------------------------------------------------------------------------------------------------------


def test_radii_by_name_number_and_pattern() -> None:
    names = ("age", "sex", "country_a", "country_b")
    assert moving(by_column({"age": 2}, (4,), names), names) == {"age": 2.0}
    assert moving(by_column({"*": 1, "sex": 0, "country_*": 0}, (4,), names), names) == {"age": 1.0}
    assert moving(by_column({0: 1, -1: (0, 3)}, (4,))) == {"0": 1.0, "3": [0.0, 3.0]}
    for wrong, said in (({"agee": 1}, "did you mean 'age'"), ({7: 1}, "there are 4, from 0"), ({"age": -1}, "0 or larger")):
        with pytest.raises(ns.InvalidInput, match=said):
            by_column(wrong, (4,), names)
    with pytest.raises(ns.InvalidInput, match="give an array"):
        by_column({"age": 1}, (1, 4, 4))


def test_the_axis_of_named_radii_is_their_fraction() -> None:
    model, x = net(), rows(12)
    y = model(x).argmax(1)
    asked: dict[str, Any] = {"eps_x": {0: 0.3, 2: 5.0}, "eps_w": [0.0, 0.01], "domain": None}
    named = ns.evaluate(model, (x, y), attack="square", certify="crown", **asked)
    assert named.eps_x == tuple(i / 10 for i in range(11))
    ball = JointBall(RADII, 0.01, None).scaled(0.5, 1)
    assert named.certified is not None
    assert named.certified.accuracy[1, 5] == pytest.approx(ns.certify(model, x, y, ball, bound="crown").accuracy)
    assert named.about["eps_x_per_element"]["largest"] == 5.0
    certified = ns.certified_surface(model, (x, y), **asked)
    assert np.array_equal(certified.accuracy, named.certified.accuracy)
    as_row = ns.certified_surface(model, (x, y), **{**asked, "eps_x": RADII[None]})  # (1, d): what the axis multiplies
    assert np.array_equal(as_row.accuracy, certified.accuracy)
    plain = ns.certified_surface(
        model, (x, y), eps_x=np.linspace(0, 0.1, 3), eps_w=[0.0], domain=None
    )  # a row of numbers is the axis
    assert plain.eps_x == (0.0, 0.05, 0.1)


# --- one logit ----------------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """The network written by hand: (0, z) of one logit z."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("head", torch.tensor([[0.0], [1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.inner(x), self.head)


class Tail(nn.Module):
    def __init__(self, tail: Any) -> None:
        super().__init__()
        self.body, self.tail = net(1), tail
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x))


TAILS = {
    "column": lambda z: z, "squeeze": lambda z: z.squeeze(1), "index": lambda z: z[:, 0], "view": lambda z: z.view(-1),
    "sigmoid": torch.sigmoid, "squeezed sigmoid": lambda z: torch.sigmoid(z).squeeze(-1),
}  # fmt: skip


def binary() -> tuple[nn.Module, Tensor, Tensor, JointBall]:
    model, x = net(1), rows(8)
    with torch.no_grad():
        model[2].bias -= model(x).median()
    return model, x, (model(x)[:, 0] > 0).long(), JointBall(RADII * 0.1, 0.02, None)


@pytest.mark.parametrize("name", SOUND)
def test_bounds_of_one_logit_are_those_of_the_pair(name: str) -> None:
    model, x, y, ball = binary()
    one = ns.certify(model, x, y, ball, bound=name).margins
    assert (one <= lowest(classifier(model, x), x, y, ball, 50) + 1e-6).all()
    if name not in ("theorem1", "best"):  # which has no rule for two linear layers in a row
        renamed = ns.certify(Pair(model), x, y, ball, bound=name).margins
        assert torch.allclose(one, renamed, atol=1e-5)


def test_theorem_1_of_one_logit_by_hand() -> None:
    # z = (1, -2) x; |x' - x| <= .1, |W' - W| <= .01: z falls by at most .1 (3 + 2 * .01) and .01 |x|_1
    model = nn.Linear(2, 1, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    x = torch.tensor([[3.0, 1.0]])
    low = theorem1(model, x, torch.tensor([1]), JointBall(0.1, 0.01, None))
    assert low[0, 0].item() == pytest.approx(1 - 0.1 * 3.02 - 0.01 * 4, abs=1e-6)
    exact = solve(model, x, torch.tensor([1]), JointBall(0.1, 0.01, None))
    assert exact.lower[0, 0].item() == pytest.approx(2.9 * 0.99 - 1.1 * 2.01, abs=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_on_one_logit_reach_what_they_reach_on_the_pair(name: str) -> None:
    model, x, y, ball = binary()
    attack = lookup(ATTACKS, name, "attack")
    point = attack(model, x, y, ball, scope="sample")
    point.check(model, x, ball)
    assert set(point.weights) <= {"0.weight", "2.weight"}
    reached = worst_margin(margins(logits_at(classifier(model, x), point), y), y)
    assert (reached <= worst_margin(margins(classifier(model, x)(x), y), y) + 1e-6).all()
    exact = worst_margin(solve(model, x, y, ball).lower, y)
    assert (reached >= exact - 1e-3).all()
    if name in ("strongest", "apgd", "alternating"):
        assert ((reached < 0) == (exact < 0)).all()


def test_one_logit_in_every_form_gives_one_surface() -> None:
    model, x, y, _ = binary()
    grid: dict[str, Any] = {"eps_x": [0.0, 0.05, 0.2], "eps_w": [0.0, 0.02], "domain": None, "certify": "crown"}
    by_hand = ns.evaluate(Pair(model), (x, y), **grid)
    for name, tail in TAILS.items():
        seen = Tail(tail).eval()
        seen.body.load_state_dict(model.state_dict())
        as_two = classifier(seen, x)
        assert {n for n, _ in as_two.named_parameters()} == {n for n, _ in seen.named_parameters()}
        assert torch.allclose(as_two(x), Pair(model)(x))
        assert torch.allclose(dense_chain(as_two)(x), as_two(x))
        assert trace_graph(as_two, (3,)).nodes[-1].shape == (2,)
        if name in ("index", "squeezed sigmoid"):
            found = ns.evaluate(seen, (x, y), **grid)
            assert np.array_equal(found.accuracy, by_hand.accuracy)
            assert found.certified is not None
            assert by_hand.certified is not None
            assert np.array_equal(found.certified.accuracy, by_hand.certified.accuracy)
    in_order = nn.Sequential(*model, nn.Sigmoid(), nn.Flatten(0)).eval()
    assert torch.allclose(classifier(in_order, x)(x), Pair(model)(x))


def test_one_logit_moves_the_weights_by_the_users_names_in_every_scope() -> None:
    model, x, y, _ = binary()
    for scope in ("sample", "batch", "dataset"):
        found = ns.evaluate(model, (x, y), eps_x=[0.05], eps_w={"2.weight": 0.1}, domain=None, scope=scope)
        assert set(found.about["moved_at_largest_eps_w"]) == {"2.weight"}
    assert ns.decide(model, x, y, JointBall(0.01, 0.001, None)).status
    assert ns.masking(model, (x, y), JointBall(0.05, 0.01, None), attack="apgd").numbers
    before = {n: p.clone() for n, p in model.named_parameters()}
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_probability_whose_logit_cannot_be_seen_is_refused() -> None:
    _, x, y, _ = binary()
    softmax = Tail(lambda z: torch.cat([z, -z], 1).softmax(1)[:, 0]).eval()
    with pytest.raises(ns.InvalidInput, match=r"always in \[0, 1\].*logit"):
        ns.evaluate(softmax, (x, y), eps_x=0.1, eps_w=0.0, domain=None)
    picked = Tail(lambda z: z).eval()
    picked.body = net(3)
    picked.tail = lambda z: z[:, 0]
    found = ns.certify(picked, x, y, JointBall(0.1, 0.0, None), bound="crown")  # one of three outputs is the logit
    z = picked(x)
    assert (found.margins.gather(1, 1 - y[:, None])[:, 0] <= torch.where(y == 1, z, -z).double() + 1e-6).all()


@pytest.mark.parametrize(
    "y, said",
    [
        (torch.rand(8), "one integer class index"),
        (torch.eye(3)[[0] * 8], "argmax"),
        (torch.ones(8, 3), "one label at a time"),
        (torch.tensor([-1, 1] * 4), "y > 0"),
        (torch.full((8,), 2), "K >= 2"),
    ],
)
def test_regression_and_multi_label_are_refused(y: Tensor, said: str) -> None:
    model, x, _, _ = binary()
    with pytest.raises(ns.InvalidInput, match=said):
        ns.evaluate(model, (x, y), eps_x=0.1, eps_w=0.0, domain=None)


# --- CSV files ------------------------------------------------------------------------------------------------------------------

HEADER = "age,sex,income,label"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of people with text for labels, and a network with one probability for it."""
    lines = [HEADER, *(f"{a:.3f},{b:.3f},{c:.3f},{('no', 'yes')[int(c > 10)]}" for a, b, c in rows(12).tolist())]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    (tmp_path / "net.py").write_text(
        "from torch import nn, sigmoid, tensor\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, 1)\n"
        "        self.fc.weight.data = tensor([[0.1, 0.1, 1.0]])\n"
        "        self.fc.bias.data = tensor([-10.0])\n"
        "    def forward(self, x):\n"
        "        return sigmoid(self.fc(x)).squeeze(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labelled(folder: Path, *labels: object) -> str:
    path = folder / "labels.csv"
    path.write_text("\n".join(["a,label", *(f"{k},{label}" for k, label in enumerate(labels))]))
    return str(path)


@pytest.mark.parametrize(
    "labels, names, numbers",
    [
        (("no", "yes", "no"), ("no", "yes"), [0, 1, 0]),
        ((1.5, 10.5, 2.5), ("1.5", "2.5", "10.5"), [0, 2, 1]),  # numbers in the order of numbers, not of text
        ((1, -1, 1), ("-1", "1"), [1, 0, 1]),
        ((2, 0, 1), ("0", "1", "2"), [2, 0, 1]),
    ],
)
def test_the_order_of_classes_is_stated(tmp_path: Path, labels: tuple[object, ...], names: Any, numbers: list[int]) -> None:
    data = ns.load(labelled(tmp_path, *labels))
    assert data.classes == names
    assert data.test.y.tolist() == numbers
    assert data.order == "classes: " + ", ".join(f"{k} = {name}" for k, name in enumerate(names))
    assert data.order in data.describe()


def test_the_order_of_classes_can_be_given(tmp_path: Path) -> None:
    assert ns.load(labelled(tmp_path, "no", "yes"), classes=["yes", "no"]).test.y.tolist() == [1, 0]
    assert ns.load(labelled(tmp_path, 3, 8, 5), classes=["3", "5", "8"]).test.y.tolist() == [0, 2, 1]
    named = ns.load(labelled(tmp_path, 0, 1), classes=["cat", "dog"])
    assert (named.classes, named.test.y.tolist()) == (("cat", "dog"), [0, 1])
    with pytest.raises(ns.InvalidInput, match="labels that classes lacks: yes"):
        ns.load(labelled(tmp_path, "no", "yes"), classes=["no", "maybe"])
    with pytest.raises(ns.InvalidInput, match="two or more different"):
        ns.load(labelled(tmp_path, "no", "yes"), classes=["no", "no"])


def test_columns_keep_their_names(here: Path) -> None:
    data = ns.load("people.csv")
    assert data.columns == data.test.take(3).columns == ("age", "sex", "income")
    model, y = net(1), data.test.y
    named = ns.certified_surface(model, data.test, eps_x=NAMED, eps_w=[0.0], domain=None)
    numbered = ns.certified_surface(model, (data.test.x, y), eps_x={0: 0.3, 2: 5.0}, eps_w=[0.0], domain=None)
    assert np.array_equal(named.accuracy, numbered.accuracy)


def test_a_run_with_named_and_fixed_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "net.py:Net", "--data", "people.csv", "--eps-x", "*=2,sex=0,age=0.5", "--eps-w", "0,0.01"]
    assert main([*asked, "--preflight", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "classes: 0 = no, 1 = yes" in said
    assert "one logit" in said
    assert "age by 0.5, income by 2; fixed: 1" in said
    assert main([*asked, "--certify", "crown", "--out", "run", "--workers", "1", "--quiet"]) == 0
    page = (here / "run" / "report.html").read_text()
    for text in ("age 0.5, income 2; all others are fixed", "0 = no, 1 = yes", "times its own radius"):
        assert text in page
    surface = ns.Surface.from_dict(json.loads((here / "run" / "results.json").read_text())["models"]["net"]["surfaces"][0])
    assert "fraction of the given" in x_label(surface)
    assert main(["verify", "run", "--model", "net.py:Net"]) == 0
    assert main([*asked, "--classes", "yes,maybe", "--preflight"]) == 2
    assert "classes lacks: no" in capsys.readouterr().err


def test_named_radii_are_settings() -> None:
    given = {"model": "m", "eps_x": {"age": [0, 2], "income": 5}, "classes": "no,yes"}
    settings = checked(EvaluateSettings, given)
    assert settings.eps_x == {"age": (0.0, 2.0), "income": 5.0}
    assert settings.classes == ("no", "yes")
    assert EvaluateSettings.model_validate_json(settings.model_dump_json()) == settings
    for wrong, said in (("age=-2", "eps_x.age: Input should be greater"), ("age=x", "column=radius")):
        with pytest.raises(ns.InvalidInput, match=said):
            checked(EvaluateSettings, {"model": "m", "eps_x": wrong})


# --- the border of the domain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_data_at_the_border_of_the_domain_lie_inside_it(dtype: torch.dtype) -> None:
    mean, std = 0.1307, 0.3081
    x = ((torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to(dtype) - mean) / std).to(dtype)
    ball = JointBall(0.1, 0.0, ((0 - mean) / std, (1 - mean) / std))
    for seen in (x, x.double()):  # as bounds see it
        assert ball.input_box(seen).contains(seen)
    with pytest.raises(ns.InvalidInput, match="outside the domain"):
        ball.check_domain(x * (1.05 if dtype.itemsize == 2 else 1.0001))
    for beyond in (1.0 + 2 * torch.finfo(dtype).eps, 1.0078125):  # 1 itself is a number of every type
        with pytest.raises(ns.InvalidInput, match="outside the domain"):
            JointBall(0.1, 0.0).check_domain(torch.tensor([[beyond]], dtype=dtype))
