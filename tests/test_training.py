"""ns.train: a trained copy, the same bits as the same formulas in a loop of ten lines, every setting where it belongs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nonsingular as ns
from nonsingular.catalog import OBJECTIVES, Objective
from nonsingular.data.datasets import Split, hash_tensors
from nonsingular.models.loading import build, load_run
from nonsingular.runs.presets import reproduction
from nonsingular.runs.train import descent_of, objective_in, train_run
from nonsingular.settings import Recipe, TrainSettings, checked, to_yaml
from nonsingular.training.checkpoint import CHECKPOINT
from nonsingular.training.descent import OPTIMIZERS, SCHEDULES
from nonsingular.untrusted import read_config

G = torch.Generator().manual_seed(0)
Y = torch.arange(60) % 3
X = (0.3 * torch.rand(60, 6, generator=G) + 0.6 * F.one_hot(Y, 6)).clamp(0, 1)
NUMBERS = {"eps_x": 0.1, "eps_w": 0.02, "alpha": 1e-3, "beta": 1e-3, "rho": 0.05, "rate": 0.05, "bits": 4}


def network(seed=0, bias=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def used(name):
    return {n: v for n, v in NUMBERS.items() if n in OBJECTIVES[name].settings}


def by_hand(model, x, y, epochs, seed, batch, make, factor, loss=lambda m, x, y, progress, g: F.cross_entropy(m(x), y)):
    """The loop as the first release had it: one generator an epoch, Adam or what `make` gives, a factor of the rate."""
    optimiser = make(list(model.parameters()))
    (rate,) = {group["lr"] for group in optimiser.param_groups}
    batches = math.ceil(len(x) / batch)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for i, rows in enumerate(torch.randperm(len(x), generator=generator).split(batch)):
            progress = (epoch * batches + i) / (epochs * batches)
            optimiser.param_groups[0]["lr"] = rate * factor(progress)
            optimiser.zero_grad()
            loss(model, x[rows], y[rows], progress, generator).backward()
            optimiser.step()
    return model


def cosine(progress):
    return 0.5 * (1 + math.cos(math.pi * progress))


# ---------------------------------------------------------------- the same bits


def test_plain_training_is_ten_lines():
    want = by_hand(network(), X, Y, 3, 5, 16, lambda p: torch.optim.Adam(p, lr=1e-2), cosine)
    got = ns.train(network(), (X, Y), epochs=3, seed=5, batch_size=16, lr=1e-2)
    assert torch.equal(weights(got.model), weights(want))


def test_a_preset_gives_the_weights_of_the_formulas(tmp_path):
    """The digits preset of AT for two epochs: PGD written out, the radius growing over 0.6 of the training."""
    preset = reproduction("digits")
    settings = TrainSettings(network=preset.network, recipe=preset.recipes["at"].model_copy(update={"epochs": 2}), seed=3)
    recipe, data = settings.recipe, ns.load("digits")
    model = build(settings, (1, 8, 8), 10).train()

    def loss(m, x, y, progress, g):
        eps = recipe.eps_x * min(1.0, progress / 0.6)
        box = ns.JointBall(eps, 0.0).input_box(x)
        moved = box.sample(g)
        for _ in range(7):
            moved.requires_grad_()
            (d,) = torch.autograd.grad(F.cross_entropy(m(moved), y, reduction="sum") / len(x), moved)
            moved = box.project_(moved.detach() + (2.5 * eps / 7) * d.sign())
        return F.cross_entropy(m(moved), y)

    by_hand(model, data.train.x, data.train.y, 2, 3, 64, lambda p: torch.optim.Adam(p, lr=2e-3), cosine, loss)
    assert train_run(settings, tmp_path / "run")["model_sha256"] == hash_tensors(model.state_dict())


def test_by_name_and_from_settings_are_the_same_bits(tmp_path):
    """Every method of the paper, through the run and through ns.train."""
    preset, data = reproduction("digits"), ns.load("digits")
    for name in ("standard", "at-beta-1", "jiwp", "joint"):
        recipe = preset.recipes[name].model_copy(update={"epochs": 2})
        settings = TrainSettings(network=preset.network, recipe=recipe, seed=1)
        numbers = {n: getattr(recipe, n) or None for n in NUMBERS}
        mine = ns.train(
            build(settings, (1, 8, 8), 10), data, method=recipe.method, epochs=2, lr=recipe.lr, batch_size=recipe.batch_size,
            seed=1, **numbers,
        )  # fmt: skip
        theirs = train_run(settings, tmp_path / name)
        assert hash_tensors(mine.model.state_dict()) == theirs["model_sha256"]
        assert mine.history[-1].val_accuracy == theirs["val_accuracy"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_seed_decides(name):
    torch.manual_seed(1)
    a = ns.train(network(bias=False), (X, Y), method=name, epochs=2, batch_size=16, **used(name))
    torch.manual_seed(2)
    b = ns.train(network(bias=False), (X, Y), method=name, epochs=2, batch_size=16, **used(name))
    other = ns.train(network(bias=False), (X, Y), method=name, epochs=2, batch_size=16, seed=1, **used(name))
    assert torch.equal(weights(a.model), weights(b.model)) and a.history == b.history
    assert not torch.equal(weights(a.model), weights(other.model))


def test_the_global_generator_and_the_threads_are_left_alone():
    before = torch.get_num_threads()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    ns.train(network(), (X, Y), method="at", eps_x=0.1, epochs=1, val=0.2)
    assert torch.rand(3).equal(want)
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- the user's module


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_module_is_never_changed(name, training):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 3))
    if name not in ("standard", "at"):
        model = network(bias=False)
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = [*model.parameters()]
    trained = ns.train(model, (X, Y), method=name, epochs=1, lr=0.1, **used(name)).model
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert [*map(id, model.parameters())] == [*map(id, kept)] and all(p.grad is None for p in kept)
    assert all(m.training == training for m in model.modules())
    assert not any(m.training for m in trained.modules())
    assert {id(p) for p in trained.parameters()}.isdisjoint(map(id, kept))
    assert not torch.equal(weights(trained), weights(model))
    assert type(trained) is type(model) and trained.state_dict().keys() == before.keys()


def test_not_even_when_it_fails():
    model = network()
    before = weights(model)

    def mortal(epoch, network):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ns.train(model, (X, Y), epochs=1, callbacks=[mortal])
    assert torch.equal(weights(model), before)


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    trained = ns.train(model, (X, Y), epochs=2, lr=0.1).model
    assert torch.equal(trained[0].weight, model[0].weight) and not torch.equal(trained[2].weight, model[2].weight)
    with pytest.raises(ns.InvalidInput, match="requires_grad"):
        ns.train(model.requires_grad_(False), (X, Y), epochs=1)


@pytest.mark.parametrize("end", [nn.Identity(), nn.Flatten(0), nn.Sigmoid()])
def test_one_logit_is_two_classes(end):
    y = (X.sum(1) > X.sum(1).median()).long()
    trained = ns.train(nn.Sequential(nn.Linear(6, 1), end), (X, y), epochs=150, lr=0.3, batch_size=20, val=(X, y))
    assert trained.history[-1].val_accuracy > 0.85
    out = trained.model(X).flatten()
    assert ((out > (0.5 if isinstance(end, nn.Sigmoid) else 0)).long() == y).double().mean().item() > 0.85


def test_computed_weights_train():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)))
    trained = ns.train(model, (X, Y), method="at", eps_x=0.05, epochs=30, lr=0.05, val=(X, Y))
    assert trained.history[-1].val_accuracy > 0.9
    assert trained.model.state_dict().keys() == model.state_dict().keys()


# ---------------------------------------------------------------- data


def test_every_kind_of_data_gives_the_same_bits():
    want = weights(ns.train(network(), (X, Y), epochs=2).model)
    pairs = TensorDataset(X, Y)
    for data in ((X.numpy(), Y.numpy()), Split(X, Y), pairs, DataLoader(pairs, batch_size=7, shuffle=True), (X, Y.int())):
        assert torch.equal(weights(ns.train(network(), data, epochs=2).model), want)


def test_three_splits_are_learnt_from_measured_and_left():
    data = ns.load("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    trained = ns.train(model, data, epochs=2, lr=1e-2)
    with torch.no_grad():
        right = (trained.model(data.val.x).argmax(1) == data.val.y).double().mean().item()
    assert trained.history[-1].val_accuracy == pytest.approx(right) and right > 0.5
    same = ns.train(model, (data.train.x, data.train.y), epochs=2, lr=1e-2)
    assert torch.equal(weights(same.model), weights(trained.model))
    assert [e.val_accuracy for e in same.history] == [None, None]
    assert [e.loss for e in same.history] == [e.loss for e in trained.history]


def test_a_part_set_aside_is_never_seen():
    seen = set()

    def spy(model):
        def loss(x, y, progress, generator):
            seen.update(map(tuple, x.tolist()))
            return F.cross_entropy(model(x), y)

        return loss

    first = ns.train(network(), (X, Y), method=spy, epochs=2, val=0.25)
    assert len(seen) == 45
    held = [row for row in X.tolist() if tuple(row) not in seen]
    right = sum(int(first.model(torch.tensor([row])).argmax()) == int(Y[X.tolist().index(row)]) for row in held)
    assert first.history[-1].val_accuracy == pytest.approx(right / 15)
    seen.clear()
    ns.train(network(), (X, Y), method=spy, epochs=1, val=0.25, seed=1)
    assert {tuple(row) for row in held} & seen  # another seed, another part


def test_a_domain_of_its_own():
    wide = X * 10 - 5
    with pytest.raises(ns.InvalidInput, match="outside the domain"):
        ns.train(network(), (wide, Y), epochs=1)
    a = ns.train(network(), (wide, Y), method="at", eps_x=0.5, epochs=1, batch_size=16, domain=(-5, 5))
    b = ns.train(network(), (wide, Y), method=ns.Adversarial(0.5, domain=(-5, 5)), epochs=1, batch_size=16)
    c = ns.train(network(), (wide, Y), method="at", eps_x=0.5, epochs=1, batch_size=16, domain=None)
    inner = ns.TheoremRegularised(ns.Adversarial(0.5, domain=(-5, 5)))  # adds nothing
    same = ns.train(network(), (wide, Y), method=inner, epochs=1, batch_size=16)
    assert torch.equal(weights(same.model), weights(a.model))
    with pytest.raises(ns.InvalidInput, match="that of the objective is"):
        ns.train(network(), (wide, Y), method=inner, epochs=1, domain=None)
    assert torch.equal(weights(a.model), weights(b.model)) and not torch.equal(weights(a.model), weights(c.model))


# ---------------------------------------------------------------- objectives


def test_a_name_is_its_value():
    values = {
        "at": ns.Adversarial(0.1, steps=3),
        "joint": ns.JointlyAdversarial(0.1, 0.02, steps=3),
        "at-beta": ns.TheoremRegularised(ns.Adversarial(0.1, steps=3), eps_w=0.02, beta=1e-3),
    }
    for name, value in values.items():
        a = ns.train(network(bias=False), (X, Y), method=name, epochs=2, steps=3, **used(name)).model
        b = ns.train(network(bias=False), (X, Y), method=value, epochs=2).model
        assert torch.equal(weights(a), weights(b))


def test_any_function_is_an_objective_and_composes():
    def smoothed(model):
        def loss(x, y, progress, generator):
            return F.cross_entropy(model(x), y, label_smoothing=0.1)

        return loss

    a = ns.train(network(), (X, Y), method=smoothed, epochs=2)
    assert not torch.equal(weights(a.model), weights(ns.train(network(), (X, Y), epochs=2).model))
    both = ns.TheoremRegularised(smoothed, eps_w=0.01, beta=0.01)
    assert math.isfinite(ns.train(network(), (X, Y), method=both, epochs=1).history[0].loss)


def test_an_entry_of_a_users_own_takes_the_numbers_that_it_declares():
    def made(*, eps_x, steps=2):
        return ns.Adversarial(eps_x, steps=steps)

    entry = Objective("mine", made, needs=("eps_x",), takes=("steps",))
    a = ns.train(network(), (X, Y), method=entry, eps_x=0.1, epochs=1)
    b = ns.train(network(), (X, Y), method="at", eps_x=0.1, steps=2, epochs=1)
    assert torch.equal(weights(a.model), weights(b.model))
    with pytest.raises(ns.InvalidInput, match="'mine' with eps_x = 0"):
        ns.train(network(), (X, Y), method=entry, epochs=1)
    with pytest.raises(ns.InvalidInput, match="'mine' does not use beta"):
        ns.train(network(), (X, Y), method=entry, eps_x=0.1, beta=0.1, epochs=1)


# ---------------------------------------------------------------- optimisers and schedules

HAND = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_torch(name):
    want = by_hand(network(), X, Y, 2, 0, 16, HAND[name], lambda progress: 1.0)
    settings = {"epochs": 2, "batch_size": 16, "schedule": "constant"}
    got = ns.train(network(), (X, Y), optimizer=name, lr=0.03, weight_decay=0.1, **settings)
    own = ns.train(network(), (X, Y), optimizer=HAND[name], **settings)
    assert torch.equal(weights(got.model), weights(want)) and torch.equal(weights(own.model), weights(want))


def test_momentum_by_hand():
    # two steps on a constant gradient g: -lr g, then -lr (1 + 0.5) g
    def steady(model):
        return lambda x, y, progress, generator: 2.0 * model.weight.sum()

    model = nn.Linear(1, 2, bias=False)
    got = ns.train(
        model, (torch.ones(2, 1), torch.tensor([0, 1])), method=steady, epochs=2, optimizer="sgd", momentum=0.5, lr=0.1,
        schedule="constant",
    ).model  # fmt: skip
    torch.testing.assert_close(got.weight, model.weight - 0.1 * 2.0 * (1 + 1.5))


@pytest.mark.parametrize(
    "name, at", [("cosine", [1, 0.5, 0]), ("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("step", [1, 0.1, 0.01])]
)
def test_schedules_by_hand(name, at):
    assert [SCHEDULES[name](p) for p in (0.0, 0.5, 1.0)] == pytest.approx(at)


def test_a_schedule_moves_every_group_from_its_own_rate():
    rates = []

    def two(parameters):
        first, *rest = parameters
        optimiser = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.01}])
        optimiser.register_step_pre_hook(lambda opt, *_: rates.append([g["lr"] for g in opt.param_groups]))
        return optimiser

    ns.train(network(), (X, Y), epochs=1, batch_size=30, optimizer=two, schedule=lambda progress: 1 - progress)
    assert rates == [[pytest.approx(0.1), pytest.approx(0.01)], [pytest.approx(0.05), pytest.approx(0.005)]]


# ---------------------------------------------------------------- callbacks and interruptions


class Stopped(Exception):
    pass


def test_parts_of_a_batch_take_the_step_of_the_whole():
    whole, parts = (ns.train(network(), (X, Y), epochs=3, batch_size=20, accumulate=k) for k in (1, 3))
    torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=0, atol=1e-5)
    assert [e.loss for e in parts.history] == pytest.approx([e.loss for e in whole.history], abs=1e-5)


@pytest.mark.parametrize("name", ["sam", "asam", "awp", "rwp", "quantised", "randbet"])
def test_mixed_precision_changes_little_of_what_moved_weights_do(name):
    """Where weights move in place, their copies in bfloat16 must move with them."""
    numbers = {n: v for n, v in {**NUMBERS, "rho": 0.5, "rate": 0.2}.items() if n in used(name)}

    def loss(**how):
        return ns.train(network(7), (X, Y), epochs=1, batch_size=60, lr=1e-9, **how).history[0].loss

    exact, mixed = (loss(method=name, amp=amp, **numbers) for amp in (None, "bfloat16"))
    assert exact != mixed  # it is used
    assert abs(exact - mixed) < 0.2 * abs(exact - loss())


def stop_after(n):
    def look(epoch, network):
        if epoch.epoch == n:
            raise Stopped

    return look


def test_callbacks_see_every_epoch_and_the_network():
    seen = []
    trained = ns.train(
        network(), (X, Y), epochs=3, val=(X, Y), callbacks=[lambda e, m: seen.append((e, m.training, weights(m).clone()))]
    )
    assert [e for e, *_ in seen] == [*trained.history] and [e.epoch for e in trained.history] == [1, 2, 3]
    assert not any(training for _, training, _ in seen)
    assert torch.equal(seen[-1][2], weights(trained.model)) and not torch.equal(seen[0][2], seen[1][2])
    assert trained.history[-1].loss < trained.history[0].loss


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "momentum", "rprop", "adagrad"])
def test_an_interrupted_training_ends_with_the_same_bits_and_history(tmp_path, optimizer):
    how = {
        "momentum": {"optimizer": "sgd", "momentum": 0.9}, "rprop": {"optimizer": lambda p: torch.optim.Rprop(p, lr=1e-3)},
        "adagrad": {"optimizer": lambda p: torch.optim.Adagrad(p, lr=1e-2)},
    }.get(optimizer, {"optimizer": optimizer})  # fmt: skip
    how |= {"method": "at", "eps_x": 0.1, "epochs": 4, "batch_size": 16, "val": 0.2}
    whole = ns.train(network(), (X, Y), **how)
    for n in (1, 3):
        folder = tmp_path / str(n)
        with pytest.raises(Stopped):
            ns.train(network(), (X, Y), directory=folder, callbacks=[stop_after(n)], **how)
        seen = []
        again = ns.train(network(), (X, Y), directory=folder, callbacks=[lambda e, m, seen=seen: seen.append(e.epoch)], **how)
        assert seen == [*range(n + 1, 5)]
        assert torch.equal(weights(again.model), weights(whole.model)) and again.history == whole.history
    assert ns.train(network(), (X, Y), directory=folder, **how).history == whole.history  # finished: nothing is done again


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"eps_x": 0.2}, {"steps": 3}, {"warmup": 0.1}, {"lr": 0.1}, {"schedule": "linear"}, {"epochs": 3},
        {"optimizer": "adamw"}, {"method": ns.Adversarial(0.1, warmup=0.5), "eps_x": None}, {"domain": (0.0, 2.0)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_the_checkpoint_of_other_settings_data_or_weights_is_refused(tmp_path, change):
    how = {"method": "at", "eps_x": 0.1, "epochs": 1}
    ns.train(network(), (X, Y), directory=tmp_path, **how)
    before = (tmp_path / CHECKPOINT).read_bytes()
    for model, data, other in ((network(), (X, Y), how | change), (network(1), (X, Y), how), (network(), (X, Y.flip(0)), how)):
        with pytest.raises(ns.InvalidInput, match="checkpoint of another run"):
            ns.train(model, data, directory=tmp_path, **other)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_an_optimiser_that_no_checkpoint_holds_is_refused(tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["seen"] = [1, 2]

    with pytest.raises(ns.InvalidInput, match="Odd keeps seen, a list"):
        ns.train(network(), (X, Y), epochs=1, optimizer=lambda p: Odd(p, lr=0.1), directory=tmp_path)
    ns.train(network(), (X, Y), epochs=1, optimizer=lambda p: Odd(p, lr=0.1))


# ---------------------------------------------------------------- settings of a run


def test_settings_from_a_file_reach_the_objective(tmp_path, monkeypatch):
    """`steps: 3` makes three steps, counted in the attack; the rest is in the objective and in the descent."""
    file = tmp_path / "c.yaml"
    file.write_text(
        "network: {hidden: [8]}\nrecipe: {method: at, eps_x: 0.1, steps: 3, warmup: 0, epochs: 1, batch_size: 600, optimizer: "
        "sgd, momentum: 0.9, schedule: linear, weight_decay: 0.001}\n"
    )
    settings = checked(TrainSettings, read_config(file))
    assert objective_in(settings.recipe, ns.load("digits")) == ns.Adversarial(0.1, steps=3, warmup=0.0)
    how = descent_of(settings)
    assert (how.optimizer, how.momentum, how.schedule, how.weight_decay) == ("sgd", 0.9, "linear", 0.001)
    taken = []
    real = torch.Tensor.sign
    monkeypatch.setattr(torch.Tensor, "sign", lambda t: (taken.append(tuple(t.shape)), real(t))[1])
    train_run(settings, tmp_path / "run")
    assert [s[0] for s in taken if s[1:] == (1, 8, 8)] == [600] * 3 + [497] * 3  # two batches of 1,097 digits
    again = load_run(tmp_path / "run")[1]
    assert again == settings
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["recipe"]["steps"] == 3


def test_what_says_what_the_first_runs_did_is_left_out():
    """So the files, folders and hashes of those are as they were."""
    before = ["method", "eps_x", "eps_w", "alpha", "beta", "epochs", "lr", "batch_size"]
    assert [*Recipe(method="standard").model_dump()] == before
    assert [*Recipe(method="standard", optimizer="adam", warmup=None).model_dump()] == before
    assert [*yaml.safe_load(to_yaml(TrainSettings()))["recipe"]] == before
    assert {*Recipe(method="at", steps=7, momentum=0.5).model_dump()} == {*before, "steps", "momentum"}


def test_names_of_the_schema_are_those_of_the_code():
    def names(field):
        return Recipe.model_fields[field].annotation.__args__

    assert names("optimizer") == OPTIMIZERS
    assert names("schedule") == tuple(SCHEDULES)
    used = {name for entry in OBJECTIVES.values() for name in entry.settings}
    assert used <= set(Recipe.model_fields)


@pytest.mark.parametrize(
    "recipe, said",
    [
        ({"method": "standard", "eps_x": 0.1}, "'standard' does not use eps_x"),
        ({"method": "jiwp", "eps_x": 0.1, "eps_w": 0.1, "alpha": 0.1, "beta": 0.1, "steps": 3}, "'jiwp' does not use steps"),
        ({"method": "standard", "momentum": 0.5}, "momentum is 0.5, which adam does not use"),
        ({"method": "at"}, "'at' with eps_x = 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_anything_is_written(tmp_path, recipe, said):
    with pytest.raises(ns.InvalidInput, match=said):
        train_run(TrainSettings(recipe=recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_of_before_opens_though_its_recipe_has_a_number_that_is_not_used(tmp_path):
    settings = TrainSettings(network={"hidden": [8]}, recipe={"method": "standard", "epochs": 1})
    summary = train_run(settings, tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("eps_w: 0.0", "eps_w: 0.5"))
    older = load_run(tmp_path)[1]
    assert older.recipe.eps_w == 0.5
    assert train_run(older, tmp_path) == summary
    with pytest.raises(ns.InvalidInput, match="does not use eps_w"):
        train_run(older, tmp_path / "again")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "how, said",
    [
        ({"epochs": -1}, "epochs is -1; give a whole number"),
        ({"epochs": 2.0}, "epochs is 2.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum is 1.0; give a number from 0"),
        ({"momentum": 0.9}, "which adam does not use"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"optimizer": lambda p: p}, "optimizer returns a list; return a torch.optim.Optimizer"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "lr": 0.1}, "optimizer is a function, and lr is 0.1"),
        ({"schedule": "cos"}, "did you mean 'cosine'"),
        ({"schedule": lambda progress: -1.0}, "schedule gives -1.0 at 0 of the training"),
        ({"method": "jwip"}, "did you mean 'jiwp'"),
        ({"method": "at", "eps_x": 0.0}, "'at' with eps_x = 0 is another method"),
        ({"method": "at", "eps_x": -0.1}, "eps_x is -0.1"),
        (
            {"method": "at", "eps_x": 0.1, "eps_w": 0.1},
            "'at' does not use eps_w; .*choose at-beta or joint or jiwp|does not use eps_w",
        ),
        ({"warmup": 0.5}, "'standard' does not use warmup"),
        ({"method": ns.Adversarial(0.1), "domain": None}, "domain is None, and that of the objective"),
        ({"method": lambda model: 3}, "the objective returns a int"),
        ({"method": lambda model: lambda *args: 3.0}, "the loss has type float"),
        ({"method": lambda model: lambda x, *args: model(x)}, r"the loss has shape \(60, 3\)"),
        ({"method": lambda model: lambda *args: torch.tensor(1.0)}, "does not depend on the parameters"),
        ({"method": lambda model: lambda x, *args: model(x).sum() * float("nan")}, "not finite in epoch 1"),
        ({"val": 1.0}, "val is 1.0; give the part"),
        ({"val": (X[:0], Y[:0])}, "validation split has 0|empty"),
        ({"val": (X, Y + 1)}, "val: labels span 1..3"),
        ({"val": "digits"}, "val: data is a str"),
        ({"threads": 0}, "threads is 0"),
        ({"accumulate": 0}, "accumulate is 0; give a whole number"),
        ({"amp": "float8"}, "amp is 'float8'; give 'bfloat16'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(how, said):
    with pytest.raises(ns.InvalidInput, match=said):
        ns.train(network(), (X, Y), **{"epochs": 1} | how)


@pytest.mark.parametrize(
    "data, said",
    [
        ((X, Y + 1), r"labels span 1\.\.3.*do they start at 1"),
        ((X, Y * 7), r"labels span 0\.\.14"),
        ((X * 2, Y), "outside the domain"),
        ((X, Y.float()), r"give y\.long\(\)"),
        ((X, F.one_hot(Y)), "one-hot"),
        ((X.double(), Y), r"give x\.to\(torch\.float32\)"),
        ((X[:, :5], Y), "does not accept inputs of shape"),
        ((X[:0], Y[:0]), "training split has 0"),
        ((torch.full((60, 6), float("nan")), Y), "NaN"),
        ("digits", "data is a str"),
        (np.zeros(3), "data is a ndarray"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_refused(data, said):
    with pytest.raises(ns.InvalidInput, match=said):
        ns.train(network(), data, epochs=1)


def test_no_rule_for_a_network_is_said_before_the_first_step():
    conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 49, 10))
    with pytest.raises(ns.UnsupportedModel, match="conv2d"):
        ns.train(conv, ns.load("digits"), method="jiwp", eps_x=0.1, eps_w=0.01, alpha=0.1, beta=0.1)
    with pytest.raises(ns.InvalidInput, match="the model is of type function"):
        ns.train(lambda x: x, (X, Y))


def test_weights_that_left_the_numbers_are_refused():
    """The last step of an epoch is seen by no loss."""

    def steep(model):
        return lambda x, y, progress, generator: 1e30 * model(x).sum()

    with pytest.raises(ns.InvalidInput, match="not finite in epoch 1"):
        ns.train(network(), (X, Y), method=steep, epochs=1, optimizer="sgd", lr=1e20)
