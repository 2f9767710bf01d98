"""Properties in .vnnlib files: what they say, which box their ball is, what is refused, and verdicts on them."""

import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import nonsingular as ns
from nonsingular.cli.main import main
from nonsingular.data.property import Conjunction, Property
from nonsingular.network.calling import held_at
from onnx_models import N, reference, save

BOX = [(0.25, 0.75), (-0.5, 0.5)]


def text(*asserted, box=BOX, outputs=3):
    """A file with this box and these assertions."""
    names = [f"X_{i}" for i in range(len(box))] + [f"Y_{j}" for j in range(outputs)]
    ends = [f"(assert (>= X_{i} {lo!r}))\n(assert (<= X_{i} {hi!r}))" for i, (lo, hi) in enumerate(box)]
    return "\n".join([*(f"(declare-const {n} Real)" for n in names), *ends, *(f"(assert {a})" for a in asserted), ""])


CLASS_1 = "(or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1)))"


@pytest.fixture
def read(tmp_path):
    def read(*asserted, **more):
        (tmp_path / "p.vnnlib").write_text(text(*asserted, **more))
        return ns.load_property(tmp_path / "p.vnnlib")

    return read


# --- what a file says -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [CLASS_1, "(or (<= Y_1 Y_2) (<= (- Y_1 Y_0) 0.0))", "(or (>= (* 1 Y_0) Y_1) (>= (+ Y_2 0) Y_1))"]
)
def test_a_class_is_recognised(read, said):
    p = read(said)
    assert p.label == 1
    assert p.y.tolist() == [1]
    assert p.lo.tolist() == [[0.25, -0.5]]
    assert p.hi.tolist() == [[0.75, 0.5]]
    assert p.x.tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(
    "said",
    ["(>= Y_0 Y_1)", "(or (>= Y_0 Y_1) (>= Y_2 0.5))", "(and (>= Y_0 Y_1) (>= Y_0 Y_2))", "(or (>= Y_0 Y_1) (>= Y_0 Y_2))",
     "(or (>= Y_0 Y_1) (>= (* 2 Y_2) Y_1))"],
)  # fmt: skip
def test_what_is_about_less_or_more_than_one_class_is_none(read, said):
    assert read(said).label is None


def test_comments_lines_and_packed_files_say_the_same(tmp_path, read):
    plain = read(CLASS_1)
    spread = text(CLASS_1).replace("(", " ( ; (assert \n").replace(")", "\r\n\t)")
    (tmp_path / "a.vnnlib").write_text(spread)
    (tmp_path / "b.vnnlib.gz").write_bytes(gzip.compress(text(CLASS_1).encode()))
    for name in ("a.vnnlib", "b.vnnlib.gz"):
        p = ns.load_property(tmp_path / name)
        assert torch.equal(p.lo, plain.lo) and torch.equal(p.hi, plain.hi) and p.label == 1


def formula(rng, depth):
    """A random formula, as text and as a function of the outputs."""
    if not depth or rng.random() < 0.3:
        (a, b), c = rng.sample(range(3), 2), rng.choice([-1.0, 0.0, 0.5])
        if rng.random() < 0.5:
            return f"(<= (+ Y_{a} {c}) (* 2.0 Y_{b}))", lambda y: y[a] + c <= 2 * y[b]
        return f"(>= (- Y_{a} Y_{b}) {c})", lambda y: y[a] - y[b] >= c
    parts = [formula(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    op, of = rng.choice([("and", all), ("or", any)])
    return f"({op} {' '.join(t for t, _ in parts)})", lambda y: of(g(y) for _, g in parts)


@pytest.mark.parametrize("seed", range(30))
def test_random_formulas_mean_what_they_say(read, seed):
    """On quarters, where float64 is exact; the network of the property says the same."""
    rng = random.Random(seed)
    written = [formula(rng, 3) for _ in range(rng.choice([1, 2]))]
    p = read(*(t for t, _ in written))
    network = p.on(nn.Linear(2, 3))
    for _ in range(40):
        y = [rng.randrange(-6, 7) / 4 for _ in range(3)]
        unsafe = all(g(y) for _, g in written)
        assert p.holds_at(torch.tensor(y, dtype=torch.float64)) == (not unsafe)
        linear = network.model if p.label is None else network
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.copy_(torch.tensor(y))
        logits = network(p.x)[0]
        others = torch.cat([logits[: p.y], logits[p.y + 1 :]])
        assert bool(logits[p.y] > others.max()) == (not unsafe)


ENDS = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 0.1, -0.1, 1e-20, -1e-20, 5e-324, 1.0, 0.3])


@given(st.lists(st.tuples(ENDS, ENDS), min_size=1, max_size=5))
def test_the_ball_is_the_box_to_the_last_bit(pairs):
    lo, hi = (torch.tensor([[end(p) for p in pairs]], dtype=torch.float64) for end in (min, max))
    p = Property(lo, hi, (Conjunction(torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1).double()),))
    ball, x = p.ball(), p.x
    inside, around = ball.input_box(x), ball.input_box(x, outward=True)
    assert torch.equal(inside.lo, lo) and torch.equal(inside.hi, hi)
    assert bool((around.lo <= lo).all() and (around.hi >= hi).all())
    near = p.in_float32(ns.Perturbation(torch.where(torch.rand(lo.shape) < 0.5, lo, hi))).x
    assert inside.contains(near)


# --- what is refused --------------------------------------------------------------------------------------------------------

REFUSED = {
    "(or (>= Y_0 Y_1) (>= X_0 0.5))": "line 10: inputs within a disjunction",
    "(<= X_0 X_1)": "line 10: an inequality between inputs and others",
    "(<= X_0 Y_1)": "line 10: an inequality between inputs and others",
    "(<= X_0 -3)": "the box is empty: X_0",
    "(< Y_0 Y_1)": "line 10: '<' is not known",
    "(not (<= Y_0 Y_1))": "line 10: 'not' is not known",
    "(<= Y_0 Y_7)": "line 10: Y_7 is not declared",
    "(<= Y_0 nan)": "line 10: 'nan' is no finite number",
    "(<= Y_0 1e999)": "line 10: '1e999' is no finite number",
    "(<= Y_0 0x10)": "line 10: '0x10' is no finite number",
    "(<= Y_0 __import__)": "line 10: '__import__' is no finite number",
    "(<= Y_0)": "line 10: '<=' of 1 sides",
    "(<= (* Y_0 Y_1) 0)": "line 10: a product of inputs or outputs is not linear",
    "(<= (* 0.1 0.1) Y_0)": "line 10: it comes to coefficients that are no numbers in float64",
    "(>= 0 1)": "line 10: an inequality between numbers alone, which is false",
    "(<= 0 1)": "it asserts nothing of the outputs",
    "(or)": "its assertions are an empty disjunction",
    "Y_0": "line 10: a number where a formula belongs",
    "(and Y_0)": "line 10: a number where a formula belongs",
    "(<= (and) Y_0)": "line 10: a formula where a number belongs",
    "()": "line 10: a form without an operator",
    "(- )": "line 10: '-' of nothing",
    "(and (<= Y_0 Y_1)": "line 10: the file ends within parentheses",
    "(<= Y_0 Y_1)) (exec x": "line 10: the command 'exec' is not known",
    "(<= Y_0 Y_1)) (declare-const X_0 Real": "line 10: X_0 is declared twice",
    "(<= Y_0 Y_1)) (declare-const Z Real": "line 10: the constant 'Z' is neither an input",
    "(<= Y_0 Y_1)) (declare-const X_2 Int": "line 10: expected (declare-const X_0 Real)",
    "(<= Y_0 Y_1)) (declare-const X_2 Real": "line 10: X_2 has no lower end",
    "(<= Y_0 Y_1)) (declare-const X_8 Real": "line 10: X_2 is not declared, but X_8 is",
    "(<= Y_0 Y_1)) exec (": "line 10: 'exec' stands outside of parentheses",
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_understood_is_named_with_its_line(read, said):
    with pytest.raises(ns.InvalidInput) as e:
        read(said)
    assert REFUSED[said] in str(e.value)


HOSTILE = {
    "nested": "(" * 10**6,
    "nested formulas": text("(and " * 10**5 + ")" * 10**5),
    "product": text(*["(or (<= Y_0 1) (<= Y_1 1))"] * 60),
    "product of nothing": text("(and " + "(or " * 20 + " (and) (and))" * 20 + ")", *["(or (and) (and))"] * 60),
    "powers": text(f"(<= (* {'1e300 ' * 5000}) Y_0)"),
    "digits": text(f"(<= {'9' * 10**6} Y_0)"),
    "exponent": text("(<= 1e99999999999999 Y_0)"),
    "many sums": text(f"(<= (+ {'0.25 Y_0 Y_1 ' * 20_000}) 1)"),
    "one output in a million": "(declare-const X_0 Real)(declare-const Y_999999999 Real)",
    "nothing": "",
    "comments": ";" * 10**6,
    "bytes": b"\xff\xfe" * 100,
    "zeros": b"\0" * 10**5,
}


@pytest.mark.parametrize("which", HOSTILE)
def test_hostile_files_are_read_or_refused_at_once(tmp_path, which):
    content = HOSTILE[which]
    (tmp_path / "p.vnnlib").write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    if which == "many sums":
        assert ns.load_property(tmp_path / "p.vnnlib").unsafe[0].A.tolist() == [[20_000.0, 20_000.0, 0.0]]
    else:
        with pytest.raises(ns.InvalidInput):
            ns.load_property(tmp_path / "p.vnnlib")
    assert time.process_time() - started < 5


def test_files_that_are_too_large_or_missing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nonsingular.data.vnnlib.LARGEST", 1000)
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(text(CLASS_1).encode() * 100))
    (tmp_path / "p.vnnlib").write_text(text(CLASS_1) * 100)
    for name in ("p.vnnlib.gz", "p.vnnlib"):
        with pytest.raises(ns.InvalidInput, match="at most 1,000 of a property are read"):
            ns.load_property(tmp_path / name)
    with pytest.raises(ns.InvalidInput, match="does not exist"):
        ns.load_property(tmp_path / "q.vnnlib")


def test_a_model_of_other_inputs_or_outputs_is_refused(read):
    p = read(CLASS_1)
    with pytest.raises(ns.InvalidInput, match="2 inputs, and the model takes"):
        p.shaped((1, 28, 28))
    with pytest.raises(ns.InvalidInput, match="3 outputs, and the model returns shape"):
        p.on(nn.Linear(2, 4))
    with pytest.raises(ns.InvalidInput, match="does not accept inputs"):
        p.on(nn.Linear(3, 3))


def test_values_of_outputs_are_not_those_of_logits(tmp_path, read):
    """A file that ends with a softmax is read without it: orders are the same, values are not."""
    nodes = [N("Gemm", ["x", "W", "b"], ["z"], transB=1), N("Softmax", ["z"], ["y"], axis=1)]
    layer = nn.Linear(2, 3)
    save(tmp_path / "m.onnx", nodes, {"W": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}, shape=(2,))
    model = ns.load_model(tmp_path / "m.onnx")
    for said in (CLASS_1, "(and (>= Y_0 Y_1) (>= (* 2 Y_0) (* 2 Y_2)))"):
        assert read(said).on(model)(read(said).x).isfinite().all()
    for said in ("(>= Y_0 0.5)", "(>= (* 2 Y_0) Y_1)", "(>= (+ Y_0 Y_1) Y_2)"):
        with pytest.raises(ns.InvalidInput, match="the Softmax at the end of the model's file is left out"):
            read(said).on(model)


# --- verdicts ---------------------------------------------------------------------------------------------------------------


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


PROPERTIES = (
    "(or (<= Y_{a} Y_{b}) (<= Y_{a} Y_{c}))",
    "(and (>= Y_{b} (+ Y_{a} -{t})) (>= Y_{b} Y_{c}))",
    "(or (and (>= Y_{b} Y_{a}) (>= Y_{c} Y_{a})) (>= Y_{b} {t}))",
    "(>= (- (* 2.0 Y_{b}) Y_{c}) {t})",
)


def unsafe_points(p, model, eps_w, seed):
    """How many of the points of a dense grid of the box, with 20 draws of the weights that move, are unsafe."""
    grid = torch.cartesian_prod(*(torch.linspace(lo, hi, 41).double() for lo, hi in BOX))
    generator, found = torch.Generator().manual_seed(seed), 0
    for _ in range(20 if eps_w else 1):
        moved = {n: w + eps_w * (2 * torch.rand(w.shape, generator=generator).double() - 1) for n, w in moving(model).items()}
        with torch.no_grad():
            y = held_at(model, moved)(grid)
        found += int(torch.stack([(y @ c.A.T <= -c.b).all(1) for c in p.unsafe]).any(0).sum())
    return found


def moving(model):
    return {n: w.detach() for n, w in model.named_parameters() if n in ("0.weight", "4.bias")}


def test_verdicts_agree_with_points_of_the_box(read):
    """No unsafe one where verified, and that of the verdict where not."""
    seen = set()
    for seed in range(12):
        model = net(seed)
        a, b, c = model(torch.tensor([[0.5, 0.0]])).argsort(descending=True)[0].tolist()
        p = read(PROPERTIES[seed % 4].format(a=a, b=b, c=c, t=[0.25, 0.5, 1.0][seed % 3]))
        eps_w = [0.0, 0.02][seed // 4 % 2]
        network, ball = p.on(model), p.ball({"0.weight": eps_w, "4.bias": eps_w} if eps_w else 0.0)
        found, exact = ns.decide(network, p.x, p.y, ball, attack="apgd", parts=3000), model.double()
        seen.add((p.label is None, found.status[0]))
        if found.status[0] != "falsified":
            assert not unsafe_points(p, exact, eps_w, seed), seed
            continue
        point, params = found.perturbation, moving(exact)
        assert bool((point.x >= p.lo).all() and (point.x <= p.hi).all())
        assert not p.holds_at(p.outputs(network, point))
        assert {p.named(n) for n in point.weights} == (set(params) if eps_w else set())
        for n, w in point.weights.items():
            assert (w[0] - params[p.named(n)]).abs().max() <= eps_w * (1 + 1e-12)
    assert {(True, "verified"), (True, "falsified"), (False, "verified")} <= seen


# --- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An ONNX file that takes (B, 2, 1), the model in it, and properties: one that holds, one that does not, one of no class."""
    monkeypatch.chdir(tmp_path)
    model, layers = net(3), (0, 2, 4)
    constants = {f"{kind}{i}": getattr(model[i], kind).detach().numpy() for i in layers for kind in ("weight", "bias")}
    nodes, last = [N("Flatten", ["x"], ["z"])], "z"
    for i in layers:
        nodes.append(N("Gemm", [last, f"weight{i}", f"bias{i}"], [f"h{i}" if i < 4 else "y"], transB=1))
        nodes += [N("Relu", [f"h{i}"], [f"r{i}"])] if i < 4 else []
        last = f"r{i}"
    save("m.onnx", nodes, constants, batch=1, shape=(2, 1))
    a, b, c = model(torch.tensor([[0.5, 0.0]])).argsort(descending=True)[0].tolist()
    small = [(0.4999, 0.5001), (-0.0001, 0.0001)]
    wrong = f"(or (>= Y_{a} Y_{b}) (>= Y_{c} Y_{b}))"
    Path("files").mkdir()
    Path("files/a.vnnlib").write_text(text(f"(or (>= Y_{b} Y_{a}) (>= Y_{c} Y_{a}))", box=small))
    Path("files/b.vnnlib").write_text(text(wrong))
    Path("files/c.vnnlib.gz").write_bytes(gzip.compress(text(f"(and (>= Y_{b} Y_{a}) (>= Y_{c} Y_{a}))", box=small).encode()))
    return model


def run(*argv):
    return main([str(a) for a in argv])


def test_verdicts_of_a_folder(here, capsys, monkeypatch):
    argv = ("certify", "m.onnx", "--vnnlib", "files", "--seconds", 20, "--workers", 1, "--out", "r")
    assert run(*argv, "--json") == 0
    said = json.loads(capsys.readouterr().out)["verdicts"]
    assert [(v["status"], v["label"] is None) for v in said] == [("verified", False), ("falsified", False), ("verified", True)]
    assert [v["property"] for v in said] == ["files/a.vnnlib", "files/b.vnnlib", "files/c.vnnlib.gz"]
    assert json.loads(Path("r/verdicts.json").read_text())["verdicts"] == said
    x = load_file("r/counterexample-1.safetensors")["x"].reshape(1, 2, 1)
    p = ns.load_property("files/b.vnnlib", (2, 1))
    assert bool((x >= p.lo).all() and (x <= p.hi).all())
    y = reference("m.onnx", x.float())
    assert torch.equal(x.float().double(), x)
    assert not p.holds_at(y[0].double()), "onnxruntime does not agree"
    lines = Path("r/counterexample-1.txt").read_text().strip("()\n").split(")\n (")
    names, values = zip(*(line.split() for line in lines), strict=True)
    assert names == ("X_0", "X_1", "Y_0", "Y_1", "Y_2")
    torch.testing.assert_close(torch.tensor([float(v) for v in values]), torch.cat([x.flatten().float(), y[0]]))
    monkeypatch.setattr("nonsingular.runs.properties.decide", None)  # a second run decides nothing again
    assert run(*argv) == 0
    assert "2 verified, 1 falsified, 0 timeout" in capsys.readouterr().out


def test_weights_move_too(here, capsys):
    """The property holds for the weights as they are, and not for all within 0.5 of them."""
    Path("c.yaml").write_text("vnnlib: [files/a.vnnlib]\neps_w: 0.5\nshape: [2, 1]\n")
    assert run("certify", "m.onnx", "--config", "c.yaml", "--workers", 1, "--out", "r", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert found["status"] == "falsified"
    moved = load_file("r/counterexample-0.safetensors")
    weights = {n.removeprefix("weights."): w for n, w in moved.items() if n != "x"}
    model = ns.load_model("m.onnx").double()
    assert set(weights) == {n for n, w in model.named_parameters() if w.dim() > 1}
    assert all((w - model.get_parameter(n)).abs().max() <= 0.5 + 1e-12 for n, w in weights.items())
    with torch.no_grad():
        y = held_at(model, weights)(moved["x"][None])[0]
    assert not ns.load_property("files/a.vnnlib").holds_at(y)


def test_radii_by_name_also_where_no_class_is_asked_for(here, capsys):
    names = [n for n, _ in ns.load_model("m.onnx").named_parameters()]
    assert run("certify", "m.onnx", "--vnnlib", "files/c.vnnlib.gz", "--eps-w", f"{names[0]}=1e-4", "--workers", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdicts"][0]["status"] == "verified"


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--vnnlib", "nothing.vnnlib"], "does not exist"),
        (["--vnnlib", "empty"], "holds no .vnnlib file"),
        (["--vnnlib", "files/a.vnnlib", "--eps-x", "0.1"], "there is no setting 'eps_x'"),
        (["--vnnlib", "files/a.vnnlib", "--eps-w", "0.1,0.2"], "give one radius with a property"),
        (["--vnnlib", "files/a.vnnlib", "--eps-w", "nothing=0.1"], "eps_w names no parameter"),
        (["--vnnlib", "files/a.vnnlib", "--shape", "3,1"], "2 inputs, and the model takes (3, 1)"),
        (["--vnnlib", "files/a.vnnlib", "--seconds", "0"], "seconds"),
        (["--vnnlib", "files/a.vnnlib", "--attack", "nothing"], "nothing"),
        (["--vnnlib", "files/a.vnnlib", "--preflight"], "--preflight is for grids"),
        (["--seconds", "3"], "'vnnlib' is missing"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(here, capsys, argv, said):
    Path("empty").mkdir()
    assert run("certify", "m.onnx", *argv, "--workers", 1, "--out", "r") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not Path("r").exists()


@pytest.mark.slow
@pytest.mark.parametrize("said, code", [("sat", 0), ("unsat", 1)])
def test_the_benchmark_finds_contradictions(here, said, code):
    """benchmarks/vnncomp.py: files/b.vnnlib has a counterexample; another tool says so, or says that it has none."""
    script = Path(__file__).parents[1] / "benchmarks" / "vnncomp.py"
    Path("files/instances.csv").write_text("../m.onnx,a.vnnlib,60\n../m.onnx,b.vnnlib,60\n")
    Path("others").mkdir()
    Path("others/tool.csv").write_text(f"x,./files/m.onnx,./files/b.vnnlib,0.1,{said},1.5\nx,./m.onnx,./a.vnnlib,0,holds,1\n")
    done = subprocess.run(
        [sys.executable, str(script), "files", "--results", "others"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert f"contradictions: {code}" in done.stdout
    assert "nonsingular    1   1   0" in done.stdout
    assert "'onnxruntime': True" in done.stdout
