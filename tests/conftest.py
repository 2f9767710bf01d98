"""conftest.py - settings that every test shares."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from nonsingular.catalog import BOUNDS

torch.set_num_threads(1)  # small matrices: many threads are far slower than one, and xdist already fills the cores

# Deadlines measure the machine.  In CI the same examples are drawn every time, so that a red run can be repeated.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets beside the checkout; a test that needs it is skipped where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no data sets in ../shared/data beside this checkout")
    return folder


@pytest.fixture(autouse=True)
def logging_as_before() -> None:
    """Libraries that set up logging switch off the loggers that there are, or raise the level of all."""
    logging.disable(logging.NOTSET)
    ours, root = logging.getLogger("nonsingular"), logging.getLogger()
    ours.disabled, ours.propagate = False, True
    ours.setLevel(logging.NOTSET)
    root.setLevel(min(root.level, logging.WARNING))


@pytest.fixture
def put_bound(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], Callable[..., Any]]:
    """(name, function) -> the function of that bound until now; the entry of the catalog has the new one until the test ends."""

    def put(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        entry = BOUNDS[name]
        monkeypatch.setitem(BOUNDS, name, replace(entry, what=function))  # pyright: ignore[reportArgumentType]
        return entry.load()

    return put


@pytest.fixture
def bounded(put_bound: Callable[..., Any]) -> Callable[[str], list[int]]:
    """name -> a list that each call of that bound adds its number of examples to."""

    def counted(name: str) -> list[int]:
        asked: list[int] = []
        real = put_bound(name, lambda model, x, y, ball: asked.append(len(x)) or real(model, x, y, ball))
        return asked

    return counted


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests listed in slow.txt are marked slow, as by hand: the default run must stay within five minutes on two cores."""
    lines = (Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
