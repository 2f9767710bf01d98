"""stored.py - how many bytes the perturbations of a run of `evaluate` take, packed and as they are, and how long that takes.

nonsingular train --data mnist --method at --eps-x 0.1 --epochs 3 --out runs/at
nonsingular evaluate runs/at --scope dataset --limit 1000 --workers 1 --out runs/at-contour
python benchmarks/stored.py runs/at-contour
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from nonsingular.evaluation.stored import FOLDER, Against, read_found, write_found
from nonsingular.runs.jobs import Attacked
from nonsingular.settings import EvaluateSettings, checked
from nonsingular.untrusted import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    torch.set_num_threads(1)
    job = Attacked(checked(EvaluateSettings, read_config(run / "config.yaml")))
    against = Against.of(job.case, job.grid)
    packed, raw, packing, unpacking, files = 0, 0, 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted((run / FOLDER).iterdir()):
            started = time.process_time()
            found = read_found(path, against)
            unpacking += time.process_time() - started
            write_found(Path(folder) / "raw", found)
            started = time.process_time()
            write_found(Path(folder) / "packed", found, against)
            packing += time.process_time() - started
            for again, one in zip(read_found(Path(folder) / "packed", against), found, strict=True):
                assert all(torch.equal(again.tensors[n].view(torch.uint8), t.view(torch.uint8)) for n, t in one.tensors.items())
            raw += (Path(folder) / "raw").stat().st_size
            packed += (Path(folder) / "packed").stat().st_size
            files += 1
    print(
        f"{files} files: {raw / 1e6:.1f} MB as they are, {packed / 1e6:.1f} MB packed ({raw / packed:.1f} times less); "
        f"CPU seconds a file: {packing / files:.2f} to pack, {unpacking / files:.2f} to unpack"
    )


if __name__ == "__main__":
    main()
