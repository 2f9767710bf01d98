"""`nonsingular evaluate --fault`: a run directory that goes on, is the same on workers, and is derived again."""

import json

import pytest

import nonsingular as ns
from nonsingular.cli.main import main
from nonsingular.report.campaign import campaign_page
from nonsingular.runs.campaigns import read_campaign

MODEL = """
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
"""
ASKED = ["--data", "digits", "--limit", "20", "--fault", "bit-error", "--rates", "0,1e-2", "--eps-x", "0,0.05"]


def run(*argv):
    try:
        return main([str(a) for a in argv])
    except SystemExit as e:
        return e.code or 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of two chips."""
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "m.py").write_text(MODEL)
    more = ["--chips", "2", "--required", "0.05", "--draws", "1", "--stored", "int4", "--workers", "1", "--quiet"]
    assert run("evaluate", f"{folder}/m.py:good", *ASKED, *more, "--out", folder / "run") == 0
    return folder


def test_the_run_is_that_of_the_function(made):
    held = ns.Campaign.from_dict(read_campaign(made / "run")["campaign"])
    scope = {}
    exec(MODEL, scope)
    test = ns.load("digits").test.take(20)
    fault = ns.BitErrors(storage=ns.UniformRounding(4))
    found = ns.campaign(scope["good"](), (test.x, test.y), fault=fault, rates=(0.0, 0.01), chips=2, eps_x=(0.0, 0.05), draws=1)
    assert held.lines(0.05) == found.lines(0.05)


def test_it_goes_on(made, capsys):
    before = (made / "run" / "events.jsonl").read_text()
    assert run("evaluate", "--config", made / "run" / "config.yaml", "--out", made / "run", "--workers", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == read_campaign(made / "run")["campaign"]
    assert (made / "run" / "events.jsonl").read_text() == before


@pytest.mark.slow
def test_it_is_the_same_on_workers(made):
    config = ["evaluate", "--config", made / "run" / "config.yaml", "--out", made / "two", "--workers", "2", "--quiet"]
    assert run(*config) == 0
    assert read_campaign(made / "two")["campaign"] == read_campaign(made / "run")["campaign"]


def test_verify_derives_it_again_and_names_what_was_changed(made, capsys):
    verify = ["verify", made / "run", "--model", f"{made}/m.py:good"]
    assert run(*verify) == 0
    assert "2 of 2 chips, simulated again" in capsys.readouterr().out
    assert run("verify", made / "run") == 2  # code runs only where it is named
    path = made / "run" / "campaign.json"
    text = path.read_text()
    results = json.loads(text)
    results["campaign"]["after"][1][0][0] = 1.0
    path.write_text(json.dumps(results))
    capsys.readouterr()
    assert run(*verify) == 1
    said = capsys.readouterr().err
    assert "campaign.json was changed" in said and "does not follow from the log" in said and "not the page" in said
    path.write_text(text)
    assert run("report", made / "run") == 0 and run(*verify) == 0


def test_the_page_escapes_and_has_no_script(made):
    results = read_campaign(made / "run")
    page = campaign_page({**results, "label": "<script>x</script>", "command": "<img src=x>"})
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert page.count("<svg") >= 3
    (path := made / "bad").mkdir()
    for spoil in ({"format": 2}, {"label": 3}, {"campaign": {}}, {"campaign": results["campaign"] | {"rates": [0.5, 0.1]}}):
        (path / "campaign.json").write_text(json.dumps({**results, **spoil}))
        with pytest.raises(ns.InvalidInput, match="cannot be read as a campaign"):
            read_campaign(path)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--eps-w", "0.1"], "with a fault, leave them out"),
        (["--fault", "uniform", "--rates", "0.1"], "the fault uniform has none"),
        (["--stored", "int99"], "there is no format 'int99'"),
        (["--rates", "0:1:log"], "write 1e-4:1e-1:log"),
        (["--rates", "2"], "rates"),
        (["--scope", "sample"], "there is no setting 'scope'"),
        (["--preflight"], "leave it out with --fault"),
        (["--attack", "corners"], "does not move inputs"),
        (["--age", "5"], "age and g_max are of pcm and reram"),
        (["--fault", "reram", "--drift", "raw"], "drift and reads are of pcm"),
        (["--fault", "reram", "--age", "5"], "give 1, 86400, 172800"),
        (["--fault", "pcm", "--g-max", "0"], "g_max"),
    ],
)
def test_what_cannot_be_is_refused(made, capsys, given, said):
    asked = ["--data", "digits", "--limit", "20", *([] if "--fault" in given else ["--fault", "bit-error"]), "--eps-x", "0,0.05"]
    assert run("evaluate", f"{made}/m.py:good", *asked, *given, "--out", made / "refused", "--quiet") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, fault",
    [
        (["pcm", "--age", "86400", "--drift", "raw"], ns.PhaseChange(86_400.0, compensated=False)),
        (
            ["pcm", "--stored", "int5", "--reads", "exact", "--moves", "all"],
            ns.InOrder((ns.UniformRounding(5, moves="all"), ns.PhaseChange(reads=False, moves="all"))),
        ),
        (["reram", "--age", "1", "--g-max", "50"], ns.ReRAM(1.0, 50.0)),
        (["pcm"], ns.PhaseChange()),
    ],
)
def test_analog_arrays_have_their_settings(made, given, fault):
    out = made / "-".join(given).replace("-", "")
    asked = ["evaluate", f"{made}/m.py:good", "--data", "digits", "--limit", "20", "--chips", "2", "--workers", "1", "--quiet"]
    assert run(*asked, "--fault", *given, "--out", out) == 0
    test, scope = ns.load("digits").test.take(20), {}
    exec(MODEL, scope)
    found = ns.campaign(scope["good"](), (test.x, test.y), fault=fault, chips=2)
    held = ns.Campaign.from_dict(read_campaign(out)["campaign"])
    assert held.lines() == found.lines() and held.about["fault"] == found.about["fault"]
