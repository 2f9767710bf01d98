"""Stored perturbations: few bytes, the same bits, whatever lies in them; and files of others are read or refused."""

import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import nonsingular as ns
from nonsingular.errors import InvalidInput
from nonsingular.evaluation import packed
from nonsingular.evaluation.packed import WORDS, Ends, pack, unpack
from nonsingular.evaluation.stored import Against, Found, read_found, stored_in, write_found

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def same(a, b):
    """Bit for bit: NaN and the sign of 0 too."""
    bits = [t.reshape(-1).contiguous().view(WORDS[t.element_size()]) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


@given(st.sampled_from(TYPES), st.sampled_from([(), (0, 3), (1,), (5, 7), (40, 3, 3)]), st.integers(0, 2**32), st.booleans())
def test_any_tensor_comes_back_bit_for_bit(dtype, shape, seed, boxed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "PIECE", 2**20 if seed % 2 else 16)
        _check(dtype, shape, seed, boxed)


def _check(dtype, shape, seed, boxed):
    g = torch.Generator().manual_seed(seed)
    home = torch.randn(shape, generator=g).to(dtype)
    lo, hi = home - 0.1, (home + 0.1).clamp(max=0.5)
    odd = torch.tensor([np.nan, np.inf, -0.0, 1e-30, 3.0e4])[torch.randint(5, shape, generator=g)].to(dtype)
    steps = lo + (hi - lo) * torch.tensor([0.85, 0.1, 0.5])[torch.randint(3, shape, generator=g)].to(dtype)
    kinds = torch.stack([lo, hi, home, steps, odd, torch.randn(shape, generator=g).to(dtype)])
    t = kinds.gather(0, torch.randint(6, (1, *shape), generator=g))[0] if shape else kinds[seed % 6]
    ends = Ends(lo, hi, home) if boxed else None
    assert same(unpack(pack(t, ends), tuple(shape), dtype, ends), t)


def test_what_attacks_leave_takes_a_bit_an_element():
    g = torch.Generator().manual_seed(0)
    home = torch.rand(100, 400, generator=g)
    lo, hi = home - 0.1, home + 0.1
    corners = torch.where(torch.rand(home.shape, generator=g) < 0.5, lo, hi)
    assert len(pack(corners, Ends(lo, hi, home))) < 1.2 * home.numel() / 8
    stepped = torch.where(torch.rand(home.shape, generator=g) < 0.9, corners, lo + 0.3 * (hi - lo))
    assert len(pack(stepped, Ends(lo, hi, home))) < 2.5 * home.numel() / 8


@given(st.binary(max_size=60), st.booleans())
def test_noise_is_no_packed_tensor(noise, inside):
    ends = Ends(*torch.zeros(3, 2, 3))
    for data in (noise, zlib.compress(noise)):
        try:
            found = unpack(data, (2, 3), torch.float32, ends if inside else None)
        except ValueError:
            continue
        assert found.shape == (2, 3)


def test_no_more_is_unpacked_than_a_tensor_needs():
    """10 KB that would unpack to 10 MB."""
    bomb = zlib.compress(b"\0" * 10**7)
    with pytest.raises(ValueError, match="too early or too late"):
        unpack(bomb, (2, 3), torch.float32, None)


# --- files ----------------------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()


@pytest.fixture
def asked():
    g = torch.Generator().manual_seed(1)
    return torch.rand(12, 16, generator=g), torch.randint(3, (12,), generator=g)


@pytest.mark.parametrize("make", [net, conv])
@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_what_a_run_keeps_is_what_the_attack_returned(make, scope, asked, tmp_path, monkeypatch):
    """Whatever is written also comes back, and in less room."""
    written = {}
    real = write_found

    def noted(path, found, against=None):
        written[path] = list(found)
        real(path, written[path], against)

    monkeypatch.setattr("nonsingular.evaluation.schedule.write_found", noted)
    model = make()
    log = tmp_path / "log.jsonl"
    ns.evaluate(model, asked, eps_x=[0, 0.1], eps_w=[0, 0.05], scope=scope, batch_size=5, log=log)
    against = Against(model, asked[0], ns.JointBall(1.0, 1.0))
    small, raw = 0, 0
    kept = {path: found for path, found in written.items() if path.exists()}  # what a sweep reached on the way is removed
    assert kept
    for path, found in kept.items():
        for mine, theirs in zip(read_found(path, against), found, strict=True):
            assert mine.radii == theirs.radii
            assert torch.equal(mine.rows, theirs.rows)
            assert mine.tensors.keys() == theirs.tensors.keys()
            assert all(same(mine.tensors[n], theirs.tensors[n]) for n in mine.tensors)
        small += path.stat().st_size
        real(tmp_path / "raw", found)
        raw += (tmp_path / "raw").stat().st_size
        again = read_found(tmp_path / "raw", against)  # as earlier releases wrote them
        assert all(same(a.tensors["x"], b.tensors["x"]) for a, b in zip(again, found, strict=True))
    assert small < raw


@pytest.fixture
def file(tmp_path, asked):
    """A packed file, and what it was packed against."""
    against = Against(net(), asked[0], ns.JointBall(1.0, 1.0))
    rows = torch.arange(12)
    w = against.network[1].weight.detach()
    tensors = {"x": (asked[0] + 0.1).clamp(0, 1), "weights.1.weight": w - 0.05, "shifts.0": torch.zeros(12, 40)}
    write_found(tmp_path / "p.safetensors", [Found((0.1, 0.05), "dataset", rows, tensors)], against)
    return tmp_path / "p.safetensors", against


def edited(path, change):
    with safe_open(path, "pt") as f:
        heads = json.loads(f.metadata()["groups"])
    tensors = load_file(path)
    change(heads[0], tensors)
    save_file(tensors, path, {"groups": json.dumps(heads)})


def test_other_data_and_another_model_are_refused(file):
    path, against = file
    assert set(stored_in(path)[0].packed) == {"x", "weights.1.weight", "shifts.0"}
    for other in (
        Against(against.network, against.x + 0.001, against.unit),
        Against(conv(), against.x, against.unit),
        Against(against.network, against.x[:, :8], against.unit),
        Against(against.network, against.x[:5], against.unit),
        Against(against.network.double(), against.x, against.unit),
    ):
        with pytest.raises(InvalidInput, match="do not fit this model or this data"):
            read_found(path, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda head, tensors: head["packed"]["x"].update(crc=1),
        lambda head, tensors: head["packed"]["x"].update(shape=[10**9, 10**9]),
        lambda head, tensors: head["packed"]["x"].update(shape=[-1, 16]),
        lambda head, tensors: head["packed"]["x"].update(shape=[10**6, 12, 16]),
        lambda head, tensors: head["packed"]["x"].update(dtype="os.system"),
        lambda head, tensors: head["packed"]["shifts.0"].update(shape=[2**40]),
        lambda head, tensors: head.update(packed=[1]),
        lambda head, tensors: head["packed"].update(x=None),
        lambda head, tensors: head.update(radii=[0.2, 0.05]),
        lambda head, tensors: head.update(scope="everyone"),
        lambda head, tensors: tensors.update({"0.x": torch.zeros(3)}),
        lambda head, tensors: tensors.update({"0.x": tensors["0.x"][:-9].clone()}),
        lambda head, tensors: tensors.update({"0.rows": torch.arange(90, 102)}),
        lambda head, tensors: tensors.update({"0.rows": torch.zeros(12)}),
    ],
)
def test_a_changed_file_is_refused(file, change):
    path, against = file
    edited(path, change)
    with pytest.raises(InvalidInput, match=r"p\.safetensors"):
        read_found(path, against)
