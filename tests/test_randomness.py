"""Forwards that are random or depend on the other examples of a batch: refused, or averaged over fixed draws."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nonsingular as ns
from nonsingular.cli.main import main


class Noisy(nn.Module):
    """A network with something random, or of the whole batch, between its layers."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 16), nn.Linear(16, 3), between

    def forward(self, x):
        return self.b(self.between(F.relu(self.a(x)), self.training))


RANDOM = {
    "dropout left on": lambda z, training: F.dropout(z, 0.5),
    "functional dropout in train mode": lambda z, training: F.dropout(z, 0.5, training),
    "noise": lambda z, training: z + 0.1 * torch.randn_like(z),
    "a random branch": lambda z, training: z if torch.rand(()) < 0.5 else 2 * z,
}
MIXING = {
    "batch norm of the batch": lambda z, training: F.batch_norm(z, torch.zeros(16), torch.ones(16), training=training),
    "the mean of the batch": lambda z, training: z - z.mean(0),
    "a softmax over the batch": lambda z, training: z.softmax(0),
}


def question(between, n=40):
    torch.manual_seed(0)
    model = Noisy(between).train()
    x = torch.rand(n, 4)
    return model, x, torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_forward_is_refused(name):
    model, x, y = question(RANDOM[name])
    with pytest.raises(ns.InvalidInput, match=r"forward is random.*--expectation"):
        ns.evaluate(model, (x, y), eps_x=[0, 0.01], eps_w=[0, 0.001])


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("n", [1, 2, 41])
def test_a_forward_over_the_batch_is_refused(name, n):
    model, x, y = question(MIXING[name], n)
    with pytest.raises(ns.InvalidInput, match=r"with the other examples of its batch|does not accept"):
        ns.evaluate(model, (x, y), eps_x=[0, 0.01], eps_w=[0, 0.001])


def test_certificates_are_refused_too():
    model, x, y = question(RANDOM["noise"])
    for question_of in (ns.certify, ns.decide, ns.certified_radius):
        with pytest.raises(ns.InvalidInput, match="forward is random"):
            question_of(model, x, y, ns.JointBall(0.01, 0.001))


@pytest.mark.parametrize("name", ["dropout left on", "noise"])
def test_an_average_over_fixed_draws_is_a_network_like_any_other(name):
    model, x, _ = question(RANDOM[name])
    mean = ns.Averaged(model, 2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    logits = mean(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(torch.cat([mean(part) for part in x.split(7)]), logits, atol=1e-6)
    torch.manual_seed(0)
    first = model(x[:1])
    assert torch.allclose(ns.Averaged(model, 1)(x[:1]), first, atol=1e-6)  # pass 0 has seed 0
    y = logits.argmax(1)
    attack = partial(ns.joint_pgd, steps=5, step_x=0.1, step_w=0.05)
    for scope in ("sample", "dataset"):
        grid = {"eps_x": [0, 0.3], "eps_w": [0, 0.2], "attack": attack, "scope": scope}
        found = [ns.evaluate(mean, (x[:6], y[:6]), **grid).accuracy for _ in range(2)]
        assert (found[0] == found[1]).all()
        assert found[0][0][0] == 1
        assert found[0][1][1] < 1


def test_an_average_goes_on_where_vmap_has_no_rule():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.o = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.o(F.dropout(self.r(x[:, None])[0][:, -1], 0.5))

    torch.manual_seed(0)
    mean, x = ns.Averaged(Recurrent(), 3), torch.rand(5, 4)
    assert torch.allclose(mean(x)[2:3], mean(x[2:3]), atol=1e-6)


@pytest.mark.parametrize("passes", [0, -1])
def test_an_average_over_nothing_is_refused(passes):
    with pytest.raises(ns.InvalidInput, match="passes is"):
        ns.Averaged(nn.Linear(2, 2), passes)
    with pytest.raises(ns.InvalidInput, match=r"nn\.Module"):
        ns.Averaged(lambda x: x, 2)


def test_expectation_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Noisy(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        torch.manual_seed(0)\n        self.a = nn.Linear(64, 10)\n\n    def forward(self, x):\n"
        "        return self.a(x.flatten(1)) + 0.1 * torch.randn(len(x), 10)\n"
    )
    asked = ["evaluate", "net.py:Noisy", "--data", "digits", "--limit", "4", "--eps-x", "0,0.1", "--eps-w", "0", "--workers", "1"]
    assert main([*asked, "--out", "refused", "--quiet"]) == 2
    assert "forward is random" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    assert main([*asked, "--expectation", "2", "--attack", "square", "--out", "run", "--quiet"]) == 0
    assert "means over 2 forward passes" in (tmp_path / "run" / "report.md").read_text()
