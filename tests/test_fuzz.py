"""test_fuzz.py - whatever is in a file or in the settings: it is read, or refused with InvalidInput.  The long run: fuzz.py."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nonsingular.data.datasets import Split, load
from nonsingular.errors import InvalidInput
from nonsingular.results.files import Log
from nonsingular.settings import EvaluateSettings, checked, to_yaml
from nonsingular.untrusted import read_config

fuzz = pytest.importorskip("fuzz")


@settings(max_examples=150)
@given(st.sampled_from(sorted(fuzz.TARGETS)), st.integers(0, 2**32))
def test_damaged_files_are_read_or_refused(target: str, seed: int) -> None:
    assert fuzz.check(target, seed) in ("read", "refused")


NOISE = (
    "a.npz",
    "a.parquet",
    "a.arrow",
    "a.csv",
    "t-images-idx3-ubyte",
    "t-images-idx3-ubyte.gz",
    "a.png",
    "a",
    "rows.npy",
    "rows.json",
)


@settings(max_examples=100)
@given(st.sampled_from(NOISE), st.binary(max_size=300))
def test_noise_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / name
    path.write_bytes(content)
    (path.parent / "t-labels-idx1-ubyte").write_bytes(content)
    with contextlib.suppress(InvalidInput):
        load(str(path))
    with contextlib.suppress(InvalidInput):
        Split(torch.zeros(5, 1), torch.zeros(5)).pick(path)
    with contextlib.suppress(InvalidInput):
        read_config(path)
    with contextlib.suppress(InvalidInput):
        list(Log(path))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4), max_leaves=12
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from([*EvaluateSettings.model_fields, "odd"]) | st.text(max_size=5), ANYTHING, max_size=4))
def test_settings_are_taken_or_refused(values: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidInput):
        taken = checked(EvaluateSettings, {"model": "m.py:f"} | values)
        assert checked(EvaluateSettings, yaml.safe_load(to_yaml(taken))) == taken


@pytest.mark.parametrize(
    "text", ["a: 2001-99-99", "a: 0x_", "[" * 5000, "? {a: 1}\n: 2", "!!int x", "a: !!binary x", "eps[w: 1", "float: 1"]
)
def test_settings_that_yaml_stumbles_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InvalidInput):
        checked(EvaluateSettings, read_config(tmp_path / "c.yaml"))


def test_records_nested_without_end_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(InvalidInput, match="line 1 is damaged"):
        list(Log(tmp_path / "events.jsonl"))


def test_a_grid_of_a_billion_points_is_refused_at_once() -> None:
    with pytest.raises(InvalidInput, match="at most 1000"):
        checked(EvaluateSettings, {"model": "m", "eps_x": "0:1:1000000000"})


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "fault, raised",
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: os._exit(9), "the process ended with 9"),
        (lambda: warnings.warn("x", stacklevel=1), "UserWarning"),
    ],
)
def test_the_long_run_sees_what_comes_out(monkeypatch: pytest.MonkeyPatch, fault: Any, raised: str) -> None:
    monkeypatch.setitem(fuzz.TARGETS, "bad", lambda rng, folder: fault())
    found = fuzz.block("bad", 7, 2)
    assert found["faults"][0]["seed"] == 7
    assert found["faults"][0]["raised"] == raised


@pytest.mark.slow
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_many_damaged_files(target: str) -> None:
    for first in range(0, 10_000, fuzz.BLOCK):
        assert fuzz.block(target, first)["faults"] == []
