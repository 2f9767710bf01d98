"""The training loop: the same bits from the same seed, from any interruption, and nothing learnt from the validation split."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from nonsingular.catalog import OBJECTIVES
from nonsingular.data.datasets import Split
from nonsingular.errors import InvalidInput
from nonsingular.models.weights import read_tensors
from nonsingular.training.checkpoint import CHECKPOINT, Checkpoint
from nonsingular.training.descent import Descent
from nonsingular.training.loop import Examples, accuracy, fit
from nonsingular.training.objectives import Adversarial, JointlyAdversarial, TheoremRegularised, natural
from nonsingular.training.train import objective_of

NUMBERS = {"eps_x": 0.1, "eps_w": 0.02, "alpha": 1e-3, "beta": 1e-3, "rho": 0.05, "rate": 0.05, "bits": 4}


def blobs(n, seed=0, classes=3):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = (0.3 * torch.rand(n, 6, generator=g) + 0.6 * F.one_hot(y, 6)).clamp(0, 1)
    return Split(x, y)


DATA, VAL = blobs(50), blobs(20, seed=1)


def network(seed=0, norm=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8)] if norm else [nn.Linear(6, 8)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 3))


def named(name):
    return objective_of(name, {n: v for n, v in NUMBERS.items() if n in OBJECTIVES[name].settings}, (0.0, 1.0))


def run(
    objective=natural, seed=0, epochs=4, norm=False, data=DATA, val=VAL, directory=None, tag="", on_epoch=None, model=None, **more
):
    model = model or network(norm=norm)
    descent = Descent(**{"epochs": epochs, "seed": seed, "lr": 1e-2, "batch_size": 16} | more)
    checkpoint = None if directory is None else Checkpoint(directory / CHECKPOINT, tag)
    callbacks = () if on_epoch is None else (lambda epoch, network: on_epoch(epoch),)
    fit(model, objective, Examples(data, val), descent, checkpoint=checkpoint, callbacks=callbacks)
    return model


def same(a, b):
    return all(v.equal(b.state_dict()[k]) for k, v in a.state_dict().items())


class Killed(Exception):
    pass


def kill_after(n):
    def on_epoch(epoch):
        if epoch.epoch == n:
            raise Killed

    return on_epoch


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_seed_decides_every_bit(name):
    objective = named(name)
    torch.manual_seed(1)
    a = run(objective)
    torch.manual_seed(2)
    assert same(a, run(objective))
    assert not same(a, run(objective, seed=1))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    run(Adversarial(0.1))
    assert torch.rand(3).equal(want)


def test_seeds_do_not_repeat_each_other_one_epoch_later():
    """Order of the data in epoch e of seed s must not be that of epoch e + 1 of seed s - 1."""
    seen = {}

    def spy(seed):
        def bind(model):
            def loss(x, y, progress, generator):
                seen.setdefault(seed, []).append(tuple(x[:, 3].tolist()))
                return F.cross_entropy(model(x), y)

            return loss

        return bind

    for seed in range(3):
        run(spy(seed), seed=seed)
    orders = [tuple(seen[seed][4 * e : 4 * e + 4]) for seed in range(3) for e in range(4)]  # 50 examples: 4 batches an epoch
    assert len(set(orders)) == 12


def test_every_epoch_sees_every_example_once_and_progress_runs_from_0_to_1():
    seen, progress = [], []

    def spy(model):
        def loss(x, y, part, generator):
            seen.append(x)
            progress.append(part)
            return F.cross_entropy(model(x), y)

        return loss

    run(spy, epochs=2)
    for epoch in range(2):
        rows = torch.cat(seen[4 * epoch : 4 * epoch + 4])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, DATA.x.tolist()))
    assert progress == pytest.approx([i / 8 for i in range(8)])


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    "objective, norm",
    [
        (natural, False), (natural, True), (Adversarial(0.1), True), (JointlyAdversarial(0.1, 0.02), False),
        (TheoremRegularised(Adversarial(0.1), 0.1, 0.02, alpha=1e-3, beta=1e-3), False),
    ],
    ids=["natural", "BatchNorm", "adversarial, BatchNorm", "joint", "regularised"],
)  # fmt: skip
def test_a_run_killed_after_any_epoch_ends_with_the_same_weights(tmp_path, objective, norm):
    whole = run(objective, norm=norm)
    for n in (1, 2, 3, 4):
        folder = tmp_path / str(n)
        folder.mkdir()
        with pytest.raises(Killed):
            run(objective, norm=norm, directory=folder, on_epoch=kill_after(n))
        epochs = []
        again = run(objective, norm=norm, directory=folder, on_epoch=epochs.append)
        assert [e.epoch for e in epochs] == list(range(n + 1, 5))
        assert same(whole, again)
        assert not again.training


def test_killed_twice_and_in_the_middle_of_an_epoch(tmp_path):
    calls = itertools.count()

    def mortal(at):
        def bind(model):
            inner = natural(model)

            def loss(*args):
                if next(calls) == at:
                    raise Killed
                return inner(*args)

            return loss

        return bind

    for at in (2, 10):  # in epoch 1 (nothing was written), then in the third
        with pytest.raises(Killed):
            run(mortal(at), directory=tmp_path)
    assert same(run(), run(directory=tmp_path))


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = run(directory=tmp_path)

    def never(model):
        def loss(*args):
            raise AssertionError("trained again")

        return loss

    assert same(first, run(never, directory=tmp_path))


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_a_truncated_checkpoint_is_refused_and_named(tmp_path, keep):
    run(directory=tmp_path, epochs=1)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidInput, match=r"checkpoint\.safetensors is not a whole safetensors file"):
        run(directory=tmp_path)


def test_the_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    run(directory=tmp_path, tag="a", epochs=1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InvalidInput, match=r"another run \(a, not b\)"):
        run(directory=tmp_path, tag="b")
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / CHECKPOINT)
    with pytest.raises(InvalidInput, match="another run"):
        run(directory=tmp_path)


def test_the_checkpoint_of_another_network_is_refused(tmp_path):
    """With the default tag only the tensors tell the runs apart."""
    run(directory=tmp_path, epochs=1)
    with pytest.raises(InvalidInput):
        run(model=nn.Linear(6, 3), epochs=2, directory=tmp_path)


# ---------------------------------------------------------------- what cannot be trained


@pytest.mark.parametrize("which", ["data", "val"])
def test_an_empty_split_is_refused(which):
    empty = Split(torch.empty(0, 6), torch.empty(0, dtype=torch.long))
    with pytest.raises(InvalidInput, match=r"(has|split) 0"):
        run(**{which: empty})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_checkpoint(tmp_path, bad):
    def diverging(model):
        inner = natural(model)
        return lambda x, y, progress, generator: inner(x, y, progress, generator) * (bad if progress >= 0.5 else 1.0)

    with pytest.raises(InvalidInput, match=r"not finite in epoch 3"):
        run(diverging, directory=tmp_path)
    tensors, about = read_tensors(tmp_path / CHECKPOINT)
    assert about["epoch"] == "2"
    assert all(torch.isfinite(t).all() for t in tensors.values())


# ---------------------------------------------------------------- the validation split


def test_the_validation_split_is_measured_and_never_learnt_from():
    """With every validation label changed the weights are the same bits, and the accuracy mirrors it."""
    epochs, swapped_epochs = [], []
    a = run(on_epoch=epochs.append)
    b = run(val=Split(VAL.x, (VAL.y + 1) % 3), on_epoch=swapped_epochs.append)
    assert same(a, b)
    assert [e.loss for e in epochs] == [e.loss for e in swapped_epochs]
    by_hand = sum(int(a(x[None]).argmax()) == int(y) for x, y in zip(VAL.x, VAL.y, strict=True)) / len(VAL)
    assert epochs[-1].val_accuracy == pytest.approx(by_hand)
    assert swapped_epochs[-1].val_accuracy <= 1 - by_hand < 0.5  # so the model itself did learn


def test_accuracy_counts_nan_as_wrong_and_does_not_depend_on_the_chunk():
    model = run()
    assert accuracy(model, DATA) == accuracy(model, DATA, chunk=7)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    assert accuracy(model, DATA) == 0.0


def test_one_step_of_adam_by_hand():
    # Adam's first step moves every weight by lr * sgn(gradient): the bias correction cancels; at progress 0 lr is the whole lr
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    one = Split(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))
    run(model=model, data=one, val=one, epochs=1, lr=0.01, batch_size=1)
    assert model.weight.flatten().tolist() == pytest.approx([0.01, -0.01], rel=1e-4)


def test_leaves_the_model_that_it_was_given_in_eval_mode():
    assert not run(epochs=1).training
