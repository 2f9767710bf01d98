"""`nonsingular verify` on whole runs, and on runs that were edited one thing at a time with their manifest made to fit."""

import base64
import json
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save

import nonsingular as ns
from nonsingular.cli.main import main
from nonsingular.evaluation.stored import FOLDER, read_found, write_found
from nonsingular.results.surface import Cell, Surface, pack
from nonsingular.runs.manifest import differences, seal
from nonsingular.runs.verify import verify_run
from nonsingular.settings import EvaluateSettings, to_yaml
from runs_of import against


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a network, and runs of it in every scope, certified, and one of certify."""
    folder = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train = ["train", "--data", "digits", "--epochs", "4", "--hidden", "16", "--lr", "0.01", "--out", "net", "--quiet"]
        assert main(train) == 0
        grid = ["net", "--limit", "14", "--eps-x", "0,0.03,0.06", "--eps-w", "0,0.01", "--workers", "1", "--quiet"]
        for scope in ("sample", "batch", "dataset"):
            assert main(["evaluate", *grid, "--scope", scope, "--certify", "interval", "--out", scope]) == 0
        assert main(["certify", *grid, "--accuracy", "0.5", "--out", "certified"]) == 0
    return folder


@pytest.fixture
def copy(runs, tmp_path, monkeypatch):
    """The runs in another place, which is not the working directory."""
    shutil.copytree(runs, tmp_path / "moved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path / "moved"


@pytest.mark.parametrize("name", ["sample", "batch", "dataset", "certified"])
def test_a_run_is_confirmed_from_any_folder(name, copy, capsys):
    assert main(["verify", str(copy / name), "--recompute-certificates", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["wrong"]
    said = " ".join(found["confirmed"])
    assert "every outcome, accuracy, interval and area follows" in said
    assert "report.html" in said
    assert "are proven again" in said
    if name != "certified":
        assert "break exactly the examples that count as lost" in said


# --- edits ----------------------------------------------------------------------------------------------------------------


def in_results(edit):
    def change(run):
        path = run / "results.json"
        results = json.loads(path.read_text())
        (model,) = results["models"].values()
        edit(results, model, model["surfaces"][0])
        path.write_text(json.dumps(results, indent=1) + "\n")

    return change


def in_log(edit):
    """`edit(entry)` on every line of the log, each with its checksum made to fit."""

    def change(run):
        path = run / "events.jsonl"
        lines = [json.loads(line)["entry"] for line in path.read_text().splitlines()]
        for entry in lines:
            edit(entry)
        texts = [json.dumps(entry, sort_keys=True) for entry in lines]
        path.write_text("".join(
            json.dumps({"crc": zlib.crc32(text.encode()), "entry": entry}, sort_keys=True) + "\n"
            for text, entry in zip(texts, lines, strict=True)
        ))  # fmt: skip

    return change


def both(*changes):
    return lambda run: [change(run) for change in changes]


def with_outcomes(surface, outcomes):
    """A surface with other outcomes, and every number that follows from them."""
    old = Surface.from_dict(surface)
    new = Surface(
        old.eps_x, old.eps_w, outcomes.mean(2), old.n, old.scope, old.attack, old.model, old.seconds, old.flags, old.kind,
        old.certified, old.about, outcomes,
    )  # fmt: skip
    surface.clear()
    surface.update(new.to_dict())


def all_right(results, model, surface):
    with_outcomes(surface, np.ones_like(Surface.from_dict(surface).outcomes))
    model["auc"] = [surface["auc"]]


def all_right_in_log(entry):
    for cell in entry.get("cells", ()):
        cell["correct"] = pack(np.ones(cell["n"], dtype=bool))


def certified_as_attacked(results, model, surface):
    with_outcomes(surface["certified"], Surface.from_dict(surface).outcomes)


def certified_as_attacked_everywhere(run):
    results = json.loads((run / "results.json").read_text())
    (model,) = results["models"].values()
    attacked = pack(Surface.from_dict(model["surfaces"][0]).outcomes.reshape(-1))
    in_log(lambda entry: entry.update(certified=attacked) if "certified" in entry else None)(run)
    in_results(certified_as_attacked)(run)


def shared_as_attacked_everywhere(run):
    """In the log and the results, the shared certificates meet the attack; nothing else is changed."""
    results = json.loads((run / "results.json").read_text())
    (model,) = results["models"].values()
    outcomes = Surface.from_dict(model["surfaces"][0]).outcomes

    def meets(entry):
        if "broken" in entry:
            entry["broken"] = (~outcomes[entry["row"], :, slice(*entry["span"])]).sum(1).tolist()

    def edit(results, model, surface):
        old = Surface.from_dict(surface["shared"])
        surface["shared"] = replace(old, accuracy=outcomes.mean(2)).to_dict()

    in_log(meets)(run)
    in_results(edit)(run)


def as_the_first_release(run):
    """Without shared certificates."""
    in_results(lambda results, model, surface: surface.pop("shared"))(run)
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("".join(f"{line}\n" for line in lines if "broken" not in json.loads(line)["entry"]))


def ten_times(results, model, surface):
    for found in (surface, surface["certified"], results["grid"]):
        found["eps_x"] = [10 * r for r in found["eps_x"]]


def setting(name, value):
    def change(run):
        held = yaml.safe_load((run / "config.yaml").read_text())
        held[name] = value
        (run / "config.yaml").write_text(to_yaml(EvaluateSettings.model_validate(held)))

    return change


def without(name):
    def change(run):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return change


def written(name, data):
    return lambda run: (run / name).write_bytes(data)


def cut(run):
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    (run / "events.jsonl").write_bytes(b"".join(lines[:-1]))


def unmoved(run):
    """Every stored perturbation is x itself, unless it is the weights that move."""
    data = ns.load("digits").test.take(14)
    for path in (run / FOLDER).iterdir():
        found = read_found(path, against(run))
        for one in found:
            one.tensors["x"].copy_(data.x[one.rows])
            for name, t in one.tensors.items():
                if name.startswith("shifts"):
                    t.zero_()
        write_found(path, found)


def outside(run):
    for path in (run / FOLDER).iterdir():
        tensors = load_file(path)
        found = read_found(path, against(run))
        for one in found:
            one.tensors["x"].add_(0.5).clamp_(0, 1)
        assert tensors
        write_found(path, found)


def margins(entry):
    for cell in entry.get("cells", ()):
        found = np.where(Cell.from_dict(cell).correct, 0, -3) + Cell.from_dict(cell).margins
        cell["margins"] = base64.b64encode(found.astype("<f4").tobytes()).decode()


def field_of_about(name, value):
    def edit(results, model, surface):
        surface["about"][name] = value

    return in_results(edit)


def clean(results, model, surface):
    model["clean"] = [1.0]
    surface["about"]["clean_accuracy"] = 1.0


def other_class(results, model, surface):
    del model["examples"]["by_class"]


def first(key, value):
    return in_results(lambda results, model, surface: results.update({key: value}))


EDITS = {
    "outcomes all right": (in_results(all_right), "results.json"),
    "outcomes all right, in the log too": (both(in_results(all_right), in_log(all_right_in_log)), "break other examples"),
    "the certified surface is the attacked one": (in_results(certified_as_attacked), "certified"),
    "the certified surface is the attacked one, in the log too": (certified_as_attacked_everywhere, "does not certify"),
    "radii times ten": (in_results(ten_times), "eps_x"),
    "radii times ten in the settings": (setting("eps_x", [0.0, 0.3, 0.6]), "lacks c"),
    "the scope renamed": (in_results(lambda r, m, s: (r.update(scope="dataset"), s.update(scope="dataset"))), "scope"),
    "the scope renamed in the settings": (setting("scope", "dataset"), "lacks c"),
    "no perturbations": (without(FOLDER), "perturbations is missing"),
    "the log emptied": (written("events.jsonl", b""), "events.jsonl is missing or empty"),
    "no log": (without("events.jsonl"), "events.jsonl is missing or empty"),
    "the log cut": (cut, "lacks"),
    "the page replaced": (written("report.html", b"<p>95 %</p>"), "report.html"),
    "no page": (without("report.html"), "report.html is missing"),
    "the table replaced": (written("cells.csv", b"model,accuracy\nnet,1.0\n"), "cells.csv"),
    "the picture replaced": (written("figure1.png", b"\x89PNG"), "figure1.png"),
    "another limit": (setting("limit", 20), "data is another one"),
    "another attack": (in_results(lambda r, m, s: (r.update(attack="apgd"), s.update(attack="apgd"))), "attack"),
    "another attack in the settings": (setting("attack", "apgd"), "lacks c"),
    "perturbations of x itself": (unmoved, "break other examples"),
    "perturbations outside the ball": (outside, "is not within"),
    "margins in the log": (in_log(margins), "margin of example"),
    "clean accuracy": (in_results(clean), "clean"),
    "the area": (in_results(lambda r, m, s: (s.update(auc=0.9), m.update(auc=[0.9]))), "auc"),
    "an interval": (in_results(lambda r, m, s: s["interval"]["low"][0].__setitem__(0, 0.5)), "interval"),
    "fewer examples": (in_results(lambda r, m, s: r["data"].update(n=13)), "data.n"),
    "the hash of the model": (field_of_about("model_sha256", "0" * 64), "model"),
    "a wider domain": (field_of_about("domain", [-1.0, 2.0]), "domain"),
    "doubts": (field_of_about("doubts", ["all is well"]), "doubts"),
    "names of classes": (in_results(lambda r, m, s: r["data"].update(classes=["cat"] * 10)), "classes"),
    "classes left out": (in_results(other_class), "by_class"),
    "the title": (in_results(lambda r, m, s: m.update(title="ours")), "title"),
    "the manifest": (lambda run: None, "manifest.json is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_named(name, copy, capsys):
    run, (edit, said) = copy / "sample", EDITS[name]
    edit(run)
    if name == "the manifest":
        (run / "manifest.json").unlink()
    else:
        seal(run)
        assert not differences(run)
    assert main(["verify", str(run), "--recompute-certificates", "all"]) in (1, 2)
    out = capsys.readouterr()
    assert said in out.err
    assert "Traceback" not in out.err


@pytest.mark.parametrize("scope", ["batch", "dataset"])
@pytest.mark.parametrize("name", ["outcomes all right, in the log too", "no perturbations", "perturbations of x itself"])
def test_an_edit_is_named_in_every_scope(scope, name, copy, capsys):
    edit, _ = EDITS[name]
    edit(copy / scope)
    seal(copy / scope)
    assert main(["verify", str(copy / scope)]) == 1
    assert "is not confirmed" in capsys.readouterr().err


@pytest.mark.parametrize("scope", ["batch", "dataset"])
def test_shared_certificates_that_were_edited_are_named(scope, copy, capsys):
    run = copy / scope
    kept = (run / "results.json").read_bytes()
    in_results(lambda r, m, s: s["shared"]["accuracy"][1].__setitem__(0, 0.99))(run)
    seal(run)
    assert main(["verify", str(run)]) == 1
    assert "shared.accuracy" in capsys.readouterr().err
    (run / "results.json").write_bytes(kept)
    shared_as_attacked_everywhere(run)
    seal(run)
    assert main(["verify", str(run), "--recompute-certificates", "all"]) == 1
    assert "one W' may break more than" in capsys.readouterr().err


def test_a_run_without_shared_certificates_is_confirmed(copy, capsys):
    """As the first release wrote them; its pages are drawn again."""
    run = copy / "dataset"
    as_the_first_release(run)
    assert main(["report", str(run)]) == 0
    seal(run)
    capsys.readouterr()
    assert main(["verify", str(run), "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["wrong"]
    assert main(["check", str(run), "--min-certified-auc", "0"]) == 0


def test_a_file_that_was_changed_or_added_is_named(copy):
    run = copy / "sample"
    (run / "notes.txt").write_text("mine")
    (run / "report.md").write_text("other")
    wrong = verify_run(run).wrong
    assert "notes.txt is not in manifest.json" in wrong
    assert "report.md was changed after manifest.json was written" in wrong


def test_a_model_that_is_code_is_not_run_unless_it_is_named(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import pathlib, torch\npathlib.Path('ran').touch()\n"
        "def make():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    grid = ["--data", "digits", "--limit", "5", "--eps-x", "0.01", "--eps-w", "0", "--workers", "1", "--quiet", "--out", "run"]
    assert main(["evaluate", "net.py:make", *grid]) == 0
    (tmp_path / "ran").unlink()
    assert main(["verify", "run"]) == 2
    assert "which is code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main(["verify", "run", "--model", "net.py:make"]) == 0


# --- what cannot be read ----------------------------------------------------------------------------------------------------

DAMAGED = (
    b"{", b"[]", b'{"format": 1, "models": NaN}', b"[" * 3000, b'{"format": 1}', b"\xff\xfe", b"3",
)  # fmt: skip


@pytest.mark.parametrize("file", ["results.json", "config.yaml", "manifest.json"])
def test_a_damaged_file_is_one_line(file, copy, capsys):
    run = copy / "sample"
    for data in DAMAGED:
        (run / file).write_bytes(data)
        assert main(["verify", str(run)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert "Traceback" not in err


MALFORMED = {
    "rows too short": lambda r, m, s: s["accuracy"][0].pop(),
    "too few rows": lambda r, m, s: s["accuracy"].pop(),
    "text for a number": lambda r, m, s: s.update(auc="high"),
    "outcomes cut": lambda r, m, s: s.update(outcomes=s["outcomes"][:4]),
    "outcomes no base64": lambda r, m, s: s.update(outcomes="?!"),
    "a huge count": lambda r, m, s: s.update(n=10**15),
    "a negative count": lambda r, m, s: s.update(n=-1),
    "no surface": lambda r, m, s: m.update(surfaces=[]),
    "a flag outside": lambda r, m, s: s["flags"].append({"row": 99, "column": 0, "flags": ["moving"]}),
    "about is a list": lambda r, m, s: s.update(about=[]),
    "no grid": lambda r, m, s: r.pop("grid"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_record_is_one_line_for_every_command(name, copy, capsys):
    run = copy / "sample"
    in_results(MALFORMED[name])(run)
    for argv in (["verify", str(run)], ["report", str(run)], ["compare", str(run), str(copy / "batch")]):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert "results.json cannot be read" in err


def test_perturbations_that_fit_nothing_are_one_line(copy, capsys):
    run = copy / "sample"
    path = next((run / FOLDER).iterdir())
    for tensors, head in (
        ({"0.rows": torch.tensor([99]), "0.x": torch.zeros(1, 1, 8, 8)}, [{"radii": [0.03, 0.0], "scope": "sample"}]),
        ({"0.rows": torch.tensor([0]), "0.x": torch.zeros(1, 3)}, [{"radii": [0.03, 0.0], "scope": "sample"}]),
        ({"0.rows": torch.tensor([0.5]), "0.x": torch.zeros(1, 1, 8, 8)}, [{"radii": [0.03, 0.0], "scope": "sample"}]),
        ({"0.x": torch.zeros(1, 1, 8, 8)}, [{"radii": [0.03, 0.0], "scope": "sample"}]),
        ({"0.rows": torch.tensor([0]), "0.x": torch.zeros(1, 1, 8, 8)}, [{"radii": ["a"], "scope": "sample"}]),
        ({"0.rows": torch.tensor([0]), "0.x": torch.zeros(1, 1, 8, 8)}, {"radii": 3}),
    ):
        path.write_bytes(save(tensors, {"groups": json.dumps(head)}))
        assert main(["verify", str(run)]) == 2
        assert "Traceback" not in capsys.readouterr().err


# --- signatures -------------------------------------------------------------------------------------------------------------


def test_a_signature_tells_who_wrote_the_manifest(copy, tmp_path, capsys):
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    for name in ("mine", "other"):
        key = Ed25519PrivateKey.generate()
        (tmp_path / name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (tmp_path / f"{name}.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    run = copy / "sample"
    assert main(["verify", str(run), "--public-key", str(tmp_path / "mine.pub")]) == 2  # nobody signed it
    assert main(["sign", str(run), "--key", str(tmp_path / "mine")]) == 0
    assert main(["verify", str(run), "--public-key", str(tmp_path / "mine.pub")]) == 0
    assert main(["verify", str(run), "--public-key", str(tmp_path / "other.pub")]) == 1
    assert "signature is not of" in capsys.readouterr().err
    assert main(["sign", str(run), "--key", str(tmp_path / "mine.pub")]) == 2
    (run / "report.md").write_text("other")
    assert main(["sign", str(run), "--key", str(tmp_path / "mine")]) == 2


@pytest.mark.slow
def test_a_run_of_reproduce_is_confirmed_and_its_edits_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.yaml").write_text("data: digits\nrecipes: {standard: {method: standard, epochs: 1}}\nlimit: 20\nseeds: 1\n")
    assert main(["reproduce", "--config", "few.yaml", "--out", "run", "--workers", "1", "--quiet"]) == 0
    assert main(["verify", "run"]) == 0
    assert "keeps no perturbations" in capsys.readouterr().out
    in_results(all_right)(tmp_path / "run")
    seal(tmp_path / "run")
    assert main(["verify", "run"]) == 1


def test_the_manifest_is_written_last(runs):
    sealed = json.loads((runs / "sample" / "manifest.json").read_text())["sha256"]
    assert {"config.yaml", "events.jsonl", "results.json", "report.html", "cells.csv", "figure1.svg"} <= sealed.keys()
    assert not differences(runs / "sample")


CELLS = {
    "no radii": lambda cell: cell.pop("eps_x"), "text for a radius": lambda cell: cell.update(eps_x="wide"),
    "a list for outcomes": lambda cell: cell.update(correct=[1]), "a number for flags": lambda cell: cell.update(flags=3),
    "margins of another length": lambda cell: cell.update(margins="AAAA"), "a huge count": lambda cell: cell.update(n=10**15),
    "half an origin": lambda cell: cell.update(origin=[0.1]), "no seconds": lambda cell: cell.update(seconds=None),
}  # fmt: skip


def test_a_cell_of_the_log_that_is_none_is_one_line(copy, capsys):
    for change in CELLS.values():
        shutil.copy(copy / "batch" / "events.jsonl", copy / "sample" / "kept")
        in_log(lambda entry, change=change: [change(cell) for cell in entry.get("cells", ())])(copy / "batch")
        assert main(["verify", str(copy / "batch")]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err
        shutil.copy(copy / "sample" / "kept", copy / "batch" / "events.jsonl")
