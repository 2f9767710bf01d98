"""The examples run, and what their page says of the tabular one is so."""

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def generators_as_before():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.slow
def test_weight_decay_helps_inputs_and_hurts_weights(capsys):
    surfaces = script("tabular").main()
    plain, decayed = surfaces["plain"], surfaces["weight decay"]
    assert decayed.auc_x > plain.auc_x
    assert decayed.auc_w < plain.auc_w
    for surface in surfaces.values():
        assert (surface.certified.accuracy <= surface.accuracy).all()
        assert surface.auc - surface.certified.auc < 0.03
    assert "AUC" in capsys.readouterr().out


def test_the_mnist_network(shared_data, capsys):
    surface = script("mnist_mlp").main(str(shared_data), examples=30)
    assert surface.accuracy[0, 0] > 0.9
    assert 0 < surface.certified.auc <= surface.auc < 1


@pytest.mark.slow
def test_the_cifar_network(shared_data, capsys):
    surface, certified = script("cifar_conv").main(str(shared_data), examples=20, epochs=1)
    assert surface.accuracy[0, 0] > 0.3
    assert (certified.accuracy[0, 0] - surface.accuracy[0, 0]) < 0.2
    assert surface.about["scope"] == "dataset"
