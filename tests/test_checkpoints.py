"""Checkpoints as people have them: a prefix more or less, averages, losses, optimizers beside; all of a network, or nothing."""

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nonsingular as ns
from nonsingular.models.checkpoints import fit_checkpoint, fit_weights
from nonsingular.models.weights import read_weights


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.model = inner

    def forward(self, x):
        return self.model(x)


X = torch.rand(6, 4)
W, AVERAGE = net(1).state_dict(), net(2).state_dict()
LOSS = {"criterion.weight": torch.ones(3), "metric.confmat": torch.zeros(3, 3)}


def under(prefix, tensors=W):
    return {prefix + k: v for k, v in tensors.items()}


FILES = {
    "a prefix": (under("net."), "'net.' taken off"),
    "any prefix": (under("some_thing."), "'some_thing.' taken off"),
    "several": (under("module._orig_mod.backbone.encoder."), "'module.backbone.encoder.' taken off"),
    "compiled inside": (under("model._orig_mod."), "'model.' taken off"),
    "compiled in part": ({k.replace("3.", "3._orig_mod."): v for k, v in W.items()}, None),
    "in a list": ({"state_dict": [W], "err": 0.1}, "taken from 'state_dict[0]'"),
    "in a tuple": ((W, 3), "taken from '[0]'"),
    "deep": ({"checkpoint": {"nets": [{"weights": under("module.")}]}}, "taken from 'checkpoint.nets[0].weights'"),
    "Lightning": (
        {"state_dict": under("model.") | LOSS, "epoch": 3, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
         "callbacks": {"best": under("")}}, "without 2 that the network does not have (criterion.weight, metric.confmat)",
    ),
    "an average beside": ({"model": W, "model_ema": AVERAGE}, "not the running average 'model_ema'"),
    "an average before": ({"ema_state_dict": AVERAGE, "state_dict": W}, "not the running average 'ema_state_dict'"),
    "timm": ({"state_dict": W, "state_dict_ema": AVERAGE, "arch": "x"}, "not the running average 'state_dict_ema'"),
    "an average in the names": ({"state_dict": under("net.") | under("ema_net.", AVERAGE)}, "'state_dict.ema_net'"),
    "an average alone": ({"ema": W, "epoch": 3}, "taken from 'ema'"),
    "AveragedModel": (under("module.") | {"n_averaged": torch.tensor(3)}, "without 1 that the network does not have"),
    "numbers beside": ({**W, "epoch": 3, "best": 0.9}, None),
    "the same twice": ({"model": W, "student": W}, "taken from 'model'"),
    "a count that is a number": ({**W, "1.num_batches_tracked": 7}, None),
    "a count that is missing": ({k: v for k, v in W.items() if "num_batches" not in k}, None),
    "parameters": ({k: nn.Parameter(v) if v.is_floating_point() else v for k, v in W.items()}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_fits(name, tmp_path, caplog):
    found, said = FILES[name]
    torch.save(found, tmp_path / "a.pt")
    model = net()
    with caplog.at_level(logging.INFO, "nonsingular"):
        fit_checkpoint([model], read_weights(tmp_path / "a.pt"), "a.pt")
    assert all(torch.equal(v, W[k]) for k, v in model.state_dict().items() if "num_batches" not in k)
    assert (said in caplog.text) if said else not caplog.text


def test_a_prefix_that_only_the_network_has(tmp_path, caplog):
    model = Wrapped(net())
    with caplog.at_level(logging.INFO, "nonsingular"):
        fit_weights(model, W, "a.pt")
    assert "'model.' put before all names" in caplog.text
    assert torch.equal(model.model[3].weight, W["3.weight"])
    fit_weights(model, under("net.", AVERAGE), "a.pt")
    assert torch.equal(model.model[3].weight, AVERAGE["3.weight"])
    fit_weights(nn.DataParallel(net()), W, "a.pt")


def test_safetensors_with_metadata(tmp_path):
    save_file(under("net."), tmp_path / "a.safetensors", metadata={"format": "pt"})
    model = net()
    fit_checkpoint([model], read_weights(tmp_path / "a.safetensors"), "a")
    assert torch.equal(model[3].weight, W["3.weight"])


REFUSED = {
    "student and teacher": ({"student": W, "teacher": AVERAGE}, "different weights: 'student', 'teacher'"),
    "two in a list": ([W, AVERAGE], "'[0]', '[1]'"),
    "two prefixes": (under("generator.") | under("critic.", AVERAGE), "'generator', 'critic'"),
    "two averages": ({"ema": W, "swa": AVERAGE}, "'ema', 'swa'"),
    "one is missing under its prefix": (under("model.", {k: W[k] for k in list(W)[1:]}) | LOSS, "1 missing: 0.weight"),
    "a layer more under its prefix": (under("model.") | {"model.9.weight": torch.zeros(1)}, "1 unexpected: 9.weight"),
    "a layer more": (W | {"9.weight": torch.zeros(1)}, "1 unexpected: 9.weight"),
    "two prefixes for one network": ({("a." if k < "1" else "b.") + k: v for k, v in W.items()}, "missing"),
    "another shape": (under("model.", W | {"3.bias": torch.zeros(4)}), "3.bias (4,) instead of (3,)"),
    "several, none fits": ({"a": {"x.weight": W["0.weight"]}, "b": {k: W[k] for k in list(W)[1:]}}, "in 'b', of 'a', 'b'"),
    "no network": ({"optimizer": {"state": W}, "epoch": 3}, "has no state dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_or_is_ambiguous_leaves_the_network_as_it_was(name, tmp_path):
    found, said = REFUSED[name]
    torch.save(found, tmp_path / "a.pt")
    model, before = net(), net().state_dict()
    with pytest.raises(ns.InvalidInput) as e:
        fit_checkpoint([model], read_weights(tmp_path / "a.pt"), "a.pt")
    assert said in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_lightning_checkpoint_for_a_normalised_network():
    model = ns.Normalized(net(), 0.5, 0.25)
    fit_checkpoint([model, model.model], {"state_dict": under("model.") | LOSS}, "a.ckpt")
    assert torch.equal(model.model[3].weight, W["3.weight"])
    torch.testing.assert_close(model(X), net(1)((X - 0.5) / 0.25))
