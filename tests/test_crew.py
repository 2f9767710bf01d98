"""Many examples that share one W', done by several workers: the bits do not depend on how many there are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nonsingular.attacks.search.crew import folded, nodes
from nonsingular.attacks.shared_apgd import shared_apgd
from nonsingular.attacks.strongest import strongest
from nonsingular.evaluation.execution import Execution
from nonsingular.evaluation.spread import Spread
from nonsingular.network.network import Network, network_of
from nonsingular.results.files import Log
from nonsingular.runs.engine import Workplace
from nonsingular.runs.evaluate import evaluate_run
from nonsingular.runs.jobs import Attacked
from nonsingular.settings import EvaluateSettings, checked
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

EXAMPLES = 1100  # two chunks of 512, and one of 76


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


def some(n: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net()(x).argmax(1)


@dataclass
class Here:
    """A crew whose calls are done in this process, the last one first."""

    network: Network
    x: Tensor
    y: Tensor
    workers: int
    calls: int = 0

    def empty(self) -> Tensor:
        return torch.empty_like(self.x)

    def seen(self, t: Tensor) -> Tensor:
        return t.clone()

    def box(self, ball: JointBall) -> Interval:
        return ball.input_box(self.x)

    def do(self, work, todo):
        self.calls += len(todo)
        done = [work(self.network, self.x, self.y, *args) for args in reversed(todo)]
        return done[::-1]


def same(a: Perturbation, b: Perturbation) -> bool:
    return (
        torch.equal(a.x, b.x)
        and a.weights.keys() == b.weights.keys()
        and all(torch.equal(w, b.weights[n]) for n, w in a.weights.items())
    )


@pytest.mark.parametrize(
    "attack, workers, eps_w", [(shared_apgd, 1, 0.02), (shared_apgd, 3, 0.02), (strongest, 2, 0.02), (strongest, 3, 0.0)]
)
def test_any_number_of_workers_finds_the_same_bits(attack, workers, eps_w):
    model, (x, y), ball = network_of(net()), some(), JointBall(0.05, eps_w)
    crew = Here(model, x, y, workers)
    alone = attack(model, x, y, ball, scope="dataset")
    assert same(alone, attack(model, x, y, ball, scope="dataset", crew=crew))
    assert crew.calls > (10 if eps_w else 5) * workers
    assert not torch.equal(alone.x, x) and (model(alone.x).argmax(1) != y).any()


def test_sums_are_taken_as_a_tree_of_the_span_alone():
    floats = torch.rand(37, generator=torch.Generator().manual_seed(0))

    def add(a, b):
        return a + b

    whole = folded((0, 37), 1, lambda node: floats[node[0]], add)
    for parts in range(1, 40):
        todo, most = nodes((0, 37), parts)
        assert [k for first, last in todo for k in range(first, last)] == list(range(37))
        assert len(todo) >= min(parts, 37) and max(last - first for first, last in todo) <= most
        done = {node: folded(node, 1, lambda node: floats[node[0]], add) for node in todo}
        assert torch.equal(folded((0, 37), most, done.__getitem__, add), whole)
    assert torch.allclose(whole, floats.sum())
    in_turn = torch.zeros(())
    for v in floats:
        in_turn = in_turn + v
    assert not torch.equal(whole, in_turn)  # the order matters: these sums would tell


def test_a_check_in_pieces_finds_one_number_outside_and_moves_what_rounding_left_outside(monkeypatch):
    monkeypatch.setattr("nonsingular.threat.perturbation.KEPT", 64)  # pieces of 9 examples
    model, (x, _), ball = net(), some(50), JointBall(0.05, 0.0)
    box, wide = ball.input_box(x), ball.input_box(x, outward=True)
    inside = Perturbation(box.hi.clone())
    assert inside.check(model, x, ball) is inside
    out = wide.hi.clone()
    assert not torch.equal(out, box.hi)
    assert torch.equal(Perturbation(out).check(model, x, ball).x, box.hi)
    out[37, 3] += 1e-3
    with pytest.raises(AssertionError, match="left the input ball"):
        Perturbation(out).check(model, x, ball)


# ---------------------------------------------------------------- processes of this machine


def timeless(value, *but):
    if isinstance(value, dict):
        return {k: timeless(v, *but) for k, v in value.items() if k not in ("seconds", *but)}
    return [timeless(v, *but) for v in value] if isinstance(value, list) else value


def bits(results, out):
    """Surfaces, log and perturbations, but for times."""
    (model,) = results["models"].values()
    entries = [json.dumps(timeless(entry), sort_keys=True) for entry in Log(out / "events.jsonl")]
    files = {p.name: p.read_bytes() for p in sorted((out / "perturbations").iterdir())}
    return timeless(model["surfaces"]), sorted(entries), files


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three cells in a row, of which no two can be attacked at once."""
    folder = tmp_path_factory.mktemp("crew")
    x, y = some(3100)
    np.savez(folder / "data.npz", x_test=x.numpy(), y_test=y.numpy())
    save_file(net().state_dict(), folder / "net.safetensors")
    (folder / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3)).eval()\n"
    )
    given = {"model": f"{folder}/net.py:net", "weights": f"{folder}/net.safetensors", "data": f"{folder}/data.npz"}
    asked = {"scope": "dataset", "eps_x": "0:0.1:3", "eps_w": "0.02", "effort": "quick"}
    return checked(EvaluateSettings, given | asked)


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    return bits(evaluate_run(settings, out, Workplace()), out)


def test_files_hold_x_hat_while_a_cell_is_divided_and_are_gone_afterwards(settings, alone, tmp_path, monkeypatch):
    job, held = Attacked(settings), list[int]()
    write = Spread.do

    def do(self, work, todo):
        held.append(sum(p.stat().st_size for p in (tmp_path / "perturbations" / "x-hat").iterdir()))
        return write(self, work, todo)

    monkeypatch.setattr(Spread, "do", do)
    with ThreadPoolExecutor(1) as pool:

        def submit(task, *args):
            return pool.submit(job.do, task, *args)

        found = job.surface(Execution(tmp_path / "events.jsonl", submit=submit, workers=3))
    x_hat = 3100 * 8 * 4
    assert len(held) > 30
    assert 6 * x_hat <= max(held) <= 14 * x_hat  # both ends, starts, the best, two in turn: files are used again
    assert not (tmp_path / "perturbations" / "x-hat").exists()
    one, other = (timeless(s, "passes") for s in (found.to_dict(), alone[0][0]))  # here the passes of workers count twice
    assert json.dumps(one) == json.dumps(other)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_processes_divide_a_cell_and_find_the_same_bits(settings, alone, tmp_path, workers):
    assert bits(evaluate_run(settings, tmp_path / "run", Workplace(workers)), tmp_path / "run") == alone


@pytest.mark.slow
def test_processes_search_the_inputs_alone_and_find_and_count_the_same(settings, tmp_path):
    still = settings.model_copy(update={"eps_w": (0.0,)})
    runs = [bits(evaluate_run(still, tmp_path / str(n), Workplace(n)), tmp_path / str(n)) for n in (1, 2)]
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_cell_changes_no_bit(settings, alone, tmp_path, monkeypatch):
    do, calls = Spread.do, list[int]()

    def deadly(self, work, todo):
        calls.append(len(todo))
        if len(calls) in (40, 41, 70):
            os.kill(active_children()[len(calls) % 2].pid, signal.SIGKILL)
        return do(self, work, todo)

    monkeypatch.setattr(Spread, "do", deadly)
    assert bits(evaluate_run(settings, tmp_path / "run", Workplace(2)), tmp_path / "run") == alone
    assert len(calls) > 80


DIES = """
import os, signal, sys
from nonsingular.cli.main import main
from nonsingular.evaluation.spread import Spread

do, calls = Spread.do, []

def deadly(self, work, todo):
    calls.append(0)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return do(self, work, todo)

Spread.do = deadly
if __name__ == "__main__":
    main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_command_killed_in_the_middle_of_a_cell_goes_on_to_the_same_bits(settings, alone, tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    run = tmp_path / "run"
    config = tmp_path / "config.json"
    config.write_text(settings.model_dump_json(exclude_none=True))
    for call in (30, 20):
        argv = [sys.executable, str(tmp_path / "dies.py"), str(call), "evaluate", "--config", str(config), "--workers", "2"]
        assert subprocess.run([*argv, "--out", str(run)], check=False, capture_output=True).returncode == -signal.SIGKILL
        assert list((run / "perturbations" / "x-hat").iterdir())  # left by a command that could not clean up
    assert bits(evaluate_run(settings, run, Workplace(2)), run) == alone
    assert not (run / "perturbations" / "x-hat").exists()
