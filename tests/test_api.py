"""What the README promises to Python users: every public name, and the two-liners."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import nonsingular as ns


@pytest.fixture
def model_and_examples():
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 2)
    x = torch.rand(12, 6, generator=g)
    return model, x, model(x).argmax(1)


def test_every_public_name_resolves():
    assert ns.__all__ == sorted(ns.__all__)
    for name in ns.__all__:
        assert getattr(ns, name).__name__ == name
        assert getattr(ns, name).__doc__
        assert name in dir(ns)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = ns.nothing_like_it


def test_star_import():
    names = {}
    exec("from nonsingular import *", names)
    assert set(ns.__all__) <= set(names)


def test_the_version_is_that_of_pyproject():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert ns.__version__ == project["version"]


def test_importing_the_package_imports_no_torch():
    code = "import sys, nonsingular; nonsingular.__version__; dir(nonsingular); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_evaluate_and_auc(model_and_examples, tmp_path):
    model, x, y = model_and_examples
    surface = ns.evaluate(model, (x, y), eps_x=0.2, eps_w=0.05)
    assert isinstance(surface, ns.Surface)
    assert surface.accuracy.shape == (11, 11)
    assert 0 < surface.auc < 1
    assert surface.accuracy[0, 0] == 1
    figure = surface.plot(tmp_path / "contour.png")
    assert figure is not None
    assert (tmp_path / "contour.png").read_bytes().startswith(b"\x89PNG")
    surface.plot(str(tmp_path / "contour.svg"))
    assert "<svg" in (tmp_path / "contour.svg").read_text()


def test_a_surface_of_one_point_or_one_line_can_be_plotted(model_and_examples, tmp_path):
    model, x, y = model_and_examples
    for eps_x, eps_w in ((0.0, 0.0), ([0.0, 0.1], 0.0), (0.0, [0.0, 0.1])):
        ns.evaluate(model, (x, y), eps_x=eps_x, eps_w=eps_w).plot(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 0
        (tmp_path / "a.png").unlink()


def test_certify(model_and_examples):
    model, x, y = model_and_examples
    c = ns.certify(model, x, y, ns.JointBall(eps_x=0.001, eps_w=0.0001))
    assert isinstance(c, ns.Certificate)
    assert c.margins.shape == (12, 3)
    assert c.verified.dtype == torch.bool
    assert 0 < c.accuracy <= 1


def test_attacks_unpack(model_and_examples):
    model, x, y = model_and_examples
    ball = ns.JointBall(eps_x=8 / 255, eps_w=1e-3)
    x_adv, w_adv = ns.joint_pgd(model, x, y, ball)
    assert x_adv.shape == x.shape
    assert {n: w.shape for n, w in w_adv.items()} == {n: p.shape for n, p in model.named_parameters()}
    x_adv, w_adv = point = ns.neuron_pgd(model, x, y, ball)
    assert isinstance(point, ns.Perturbation)
    assert {n: w.shape for n, w in w_adv.items()} == {n: (12, *p.shape) for n, p in model.named_parameters()}
    moved = torch.func.functional_call(model, {n: w[0] for n, w in w_adv.items()}, (x_adv[:1],))
    assert moved.shape == (1, 3)


def test_errors_are_value_errors(model_and_examples):
    model, x, y = model_and_examples
    with pytest.raises(ValueError, match="outside the domain"):
        ns.evaluate(model, (x * 255, y), eps_x=0.1, eps_w=0.1)
    assert issubclass(ns.UnsupportedModel, ns.InvalidInput)


def test_load_gives_three_splits():
    data = ns.load("digits")
    assert [len(s) for s in (data.train, data.val, data.test)] == [1097, 200, 500]


def test_threads_are_few_meanwhile_and_then_as_before():
    seen = set()

    class Noting(torch.nn.Linear):
        def forward(self, input):
            seen.add(torch.get_num_threads())
            return super().forward(input)

    model, x = Noting(4, 3).eval(), torch.rand(6, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        y = torch.nn.functional.linear(x, model.weight, model.bias).argmax(1)
        ns.evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.1], attack="paper")
        assert seen == {1}
        ns.evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.1], attack="paper", threads=2)
        assert seen == {1, 2}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ns.InvalidInput, match="threads is 0"):
        ns.evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.1], threads=0)


def test_an_old_name_works_with_a_warning_that_names_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"nonsingular\.verify is called nonsingular\.decide now"):
        assert ns.verify is ns.decide
    assert "verify" not in ns.__all__
