"""What to protect: each option against its own campaign by hand, and the page of a run."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.report.campaign import campaign_page
from nonsingular.runs.campaigns import read_campaign
from test_campaign_run import ASKED, MODEL, run


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(60, 6)
    return model, x, model(x).argmax(1)


def test_every_option_is_what_chips_with_it_do(case):
    model, x, y = case
    fault = ns.BitErrors(0.03)
    found = ns.protection(model, (x, y), fault=fault, chips=5, bits=0)
    kinds = {(o.kind, o.what): o for o in found.options}
    assert [*kinds][:5] == [("none", ""), ("layer", "0.weight"), ("layer", "2.weight"), ("bits", "1"), ("bits", "2")]
    largest = max(p.abs().max().item() for p in model.parameters() if p.dim() > 1)
    clipped = ns.UniformRounding(8, w_max=largest / 2)
    by_hand = {
        ("none", ""): fault, ("bits", "1"): ns.BitErrors(0.03, positions=range(7)),
        ("clip", f"{largest / 2:.4g}"): ns.BitErrors(0.03, clipped),
    }  # fmt: skip
    for key, same in by_hand.items():
        of_chips = ns.campaign(model, (x, y), fault=same, rates=[0.0, 0.03], chips=5)
        option = kinds[key]
        assert (option.mean, option.worst) == (of_chips.mean()[1, 0], of_chips.worst()[1, 0])
        assert option.still == of_chips.mean()[0, 0]
    assert kinds["bits", "1"].share == 1 / 8 and kinds["layer", "2.weight"].share == 36 / 108
    assert found.after is None and found.bits == ()
    assert ns.Protection.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_safe_tensor_keeps_its_words_and_the_errors_of_the_others_stay(case):
    model, *_ = case
    weights = dict(model.named_parameters())
    plain = ns.BitErrors(0.1).chip(weights, torch.Generator().manual_seed(3))
    safe = ns.BitErrors(0.1, safe=("0.weight",)).chip(weights, torch.Generator().manual_seed(3))
    assert torch.equal(safe.weights["0.weight"], ns.quantize(model)[0].weight)
    assert torch.equal(safe.weights["2.weight"], plain.weights["2.weight"])
    assert safe.bits == plain.bits and 0 < safe.errors < plain.errors
    with pytest.raises(ns.InvalidInput, match=r"safe names 7\.weight"):
        ns.BitErrors(0.1, safe=("7.weight",)).chip(weights, torch.Generator())


def test_bits_that_are_protected_are_not_flipped_again(case):
    model, x, y = case
    found = ns.protection(model, (x, y), fault=ns.BitErrors(0.03), chips=2, bits=4)
    attack = ns.flip_attack(model, x, y, flips=4, beam=1, exchange=False)
    assert [(b.tensor, b.index, b.bit) for b in found.bits] == [(f.name, f.index, f.bit) for f in attack.flips]
    assert [b.accuracy for b in found.bits] == list(attack.accuracy[1:])
    again = ns.flip_attack(model, x, y, flips=4, beam=1, exchange=False, spared=attack.flips)
    assert not set(again.flips) & set(attack.flips) and found.after == again.accuracy[-1]
    assert found.bits[-1].accuracy < found.clean
    assert any("ones to protect" in line for line in found.lines())


def test_bad_settings_and_records_are_said(case):
    model, x, y = case
    for settings, said in (({"fault": ns.PhaseChange()}, "BitErrors"), ({"chips": 0}, "chips"), ({"bits": -1}, "bits")):
        with pytest.raises(ns.InvalidInput, match=said):
            ns.protection(model, (x, y), **settings)
    held = ns.protection(model, (x, y), chips=1, bits=1).to_dict()
    for key, wrong in (("rate", 2.0), ("options", []), ("clean", float("nan")), ("bits", [{"tensor": "a"}])):
        with pytest.raises(ns.InvalidInput, match="no record of protection"):
            ns.Protection.from_dict({**held, key: wrong})


def test_the_page_of_a_run_says_what_to_protect_and_verify_finds_it_again(tmp_path, capsys):
    (tmp_path / "m.py").write_text(MODEL)
    more = ["--chips", "2", "--advice", "3", "--workers", "1", "--quiet", "--out", tmp_path / "run"]
    assert run("evaluate", f"{tmp_path}/m.py:good", *ASKED, *more) == 0
    results = read_campaign(tmp_path / "run")
    found, page = ns.Protection.from_dict(results["protection"]), (tmp_path / "run" / "report.html").read_text()
    assert found.rate == 0.01 and len(found.bits) == 3
    assert "What to protect" in page and "1.weight protected" in page and str(found.bits[0].index) in page
    assert run("verify", tmp_path / "run", "--model", f"{tmp_path}/m.py:good") == 0
    moved = dataclasses.replace(found, options=(*found.options[:1], dataclasses.replace(found.options[1], what="<script>x")))
    assert "<script>x" not in campaign_page({**results, "protection": moved.to_dict()})
    (tmp_path / "run" / "campaign.json").write_text(json.dumps({**results, "protection": moved.to_dict()}))
    capsys.readouterr()
    assert run("verify", tmp_path / "run", "--model", f"{tmp_path}/m.py:good") == 1
    assert "does not follow" in capsys.readouterr().err
    assert run("evaluate", f"{tmp_path}/m.py:good", "--data", "digits", "--fault", "pcm", "--advice", "3") == 2
