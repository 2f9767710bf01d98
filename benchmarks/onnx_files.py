"""onnx_files.py - reads every ONNX file under a folder, compares it with onnxruntime, and counts what became of them.

    python benchmarks/onnx_files.py FOLDER

Takes .onnx and .onnx.gz, each content once.  Prints a line for each kind of network (a folder and its operators) and the counts:
read and equal to onnxruntime (within 1e-4 of the largest output, on random inputs), read but different, refused with the reason;
and of those that were read, whether bounds have rules for all
operations (trace_graph), or what they refuse.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

import nonsingular as ns
from nonsingular.network.graph import trace_graph

EXAMPLES = 3


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def by_onnxruntime(running: ort.InferenceSession, x: np.ndarray) -> tuple[np.ndarray, bool]:
    """The first output for examples x as the file wants them, and whether the file has a batch."""
    (given, *_) = running.get_inputs()
    x = x.astype({"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(given.type, np.float32))
    y = running.run(None, {given.name: x[0]})[0]
    batched = x[0].ndim > 1 and (len(x[0]) == 1 or y.shape[:1] == x[0].shape[:1])
    size = len(x[0]) if batched else 1
    return np.concatenate([np.reshape(running.run(None, {given.name: one})[0], (size, -1)) for one in x]), batched


def outcome(path: Path) -> tuple[str, str]:
    """What became of a file, and what of its certificate."""
    try:
        model = ns.load_model(path)
    except ns.InvalidInput as e:
        return f"refused: {str(e).replace(str(path), 'it')}", ""
    running = session(path)
    shape = [n if isinstance(n, int) and n > 0 else 1 if i == 0 else 64 for i, n in enumerate(running.get_inputs()[0].shape)]
    x = np.random.default_rng(0).random((EXAMPLES, *shape), dtype=np.float32)
    want, batched = by_onnxruntime(running, x)
    given = torch.from_numpy(x.reshape(-1, *shape[1:]) if batched else x)
    with torch.no_grad():
        logits = model(given).reshape(want.shape).float()
    scale = np.abs(np.nan_to_num(want)).max() + 1
    heads = [logits, logits.softmax(1), logits.log_softmax(1), logits.argmax(1, keepdim=True)]  # what is left out at the end
    if not any(np.allclose(y.numpy() / scale, want / scale, atol=1e-4, rtol=1e-3, equal_nan=True) for y in heads):
        return f"DIFFERS by {np.abs(logits.numpy() - want).max():.2g} (largest output {scale:.2g})", ""
    try:
        trace_graph(model, given.shape[1:])
    except ns.InvalidInput as e:
        return "equal", str(e)
    return "equal", "all operations have bounds"


def operators(path: Path) -> Counter[str]:
    try:
        return Counter(n.op_type for n in onnx.load(path, load_external_data=False).graph.node)
    except Exception:  # a damaged file
        return Counter()


def short(reason: str) -> str:
    """Without the names of nodes and files."""
    reason = reason.split(" at node")[0] if "no rule for" in reason else reason
    return reason[:110]


def main(folder: Path) -> None:
    seen, kinds, counts, bounds, files = set[str](), Counter[tuple[str, str]](), Counter[str](), Counter[str](), 0
    for path in sorted(p for p in folder.rglob("*.onnx*") if p.suffix in (".onnx", ".gz")):
        files += 1
        data = path.read_bytes()
        with tempfile.TemporaryDirectory() as place:
            use = path
            if path.suffix == ".gz":
                use = Path(place) / path.stem
                data = gzip.decompress(data)
                use.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            if digest in seen:
                continue
            seen.add(digest)
            try:
                what, bound = outcome(use)
            except ort.capi.onnxruntime_pybind11_state.Fail as e:
                what, bound = f"not compared, as onnxruntime fails: {str(e)[:80]}", ""
            ops = operators(use)
        kind = (str(path.parent.relative_to(folder)), " ".join(f"{k}{'' if n == 1 else n}" for k, n in sorted(ops.items())))
        kinds[kind] += 1
        if kinds[kind] == 1 or what != "equal":
            print(f"{path.relative_to(folder)}: {what}{f'; {bound}' if bound else ''}"[:300], flush=True)
        counts[short(what)] += 1
        if bound:
            bounds[short(bound)] += 1
    print(f"\n{files} files, {len(seen)} of different content, {len(kinds)} kinds of networks")
    for title, table in (("read", counts), ("bounds of those that were read", bounds)):
        print(f"\n{title}")
        for reason, n in table.most_common():
            print(f"{n:6d}  {reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
