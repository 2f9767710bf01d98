"""errors.py - errors for what cannot be used, has a new name, or contradicts another number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from nonsingular.plain import legible

P = ParamSpec("P")
T = TypeVar("T")


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keeps old names of keyword arguments for a release, with a DeprecationWarning: renamed(method="bound")."""

    def around(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{function.__name__}() takes {new}=, once {old}=, not both")
                    warnings.warn(f"{function.__name__}({old}=...) is called {new}= now", DeprecationWarning, stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return called

    return around


class InvalidInput(ValueError):
    """A value, file or model given by the user cannot be used.

    The message is one sentence that quotes what was given, followed by what to do instead.
    The command line prints it without a traceback and exits with code 2.  What it quotes from files is written out in plain text.
    """

    def __str__(self) -> str:
        return legible(super().__str__())


class UnsupportedModel(InvalidInput):
    """The model contains something that a method has no rule for; the message names the node and the operation."""


class NotInBall(InvalidInput, AssertionError):
    """What an attack returned has another shape, or lies outside its ball: the attack is wrong."""


class SoundnessError(AssertionError):
    """An attack reached a margin below a certified lower bound: one of the two is wrong, and no number of the run can be trusted.

    example: its number in the data.  eps_x, eps_w: the point of the grid.  certified, attacked: the two margins.
    """

    def __init__(self, example: int, eps_x: float, eps_w: float, certified: float, attacked: float, saved: str = "") -> None:
        super().__init__(example, eps_x, eps_w, certified, attacked, saved)  # these arguments: it travels between processes
        self.example, self.eps_x, self.eps_w = example, eps_x, eps_w
        self.certified, self.attacked, self.saved = certified, attacked, saved

    def __str__(self) -> str:
        return (
            f"example {self.example} at eps_x = {self.eps_x:g}, eps_w = {self.eps_w:g}: its margin is certified to be at least "
            f"{self.certified:.6g}, and an attack reached {self.attacked:.6g}; this is a fault of nonsingular, please report it"
            + (f" with {self.saved}" if self.saved else "")
        )


class SharedSoundnessError(SoundnessError):
    """One W' broke more of the examples that share it than a certificate says any can.

    span: the examples, first and behind the last.  certified: at most so many can break.  attacked: so many did.
    """

    def __init__(self, span: tuple[int, int], eps_x: float, eps_w: float, certified: int, attacked: int) -> None:
        super().__init__(span[0], eps_x, eps_w, certified, attacked)
        self.args = (span, eps_x, eps_w, certified, attacked)  # as it travels between processes
        self.span = span

    def __str__(self) -> str:
        return (
            f"examples {self.span[0]} to {self.span[1] - 1} at eps_x = {self.eps_x:g}, eps_w = {self.eps_w:g}: one W' for all is "
            f"certified to break at most {self.certified:g}, and an attack broke {self.attacked:g}; this is a fault of "
            "nonsingular, please report it"
        )


class Unconfirmed(AssertionError):
    """Stored perturbations contradict the results of their run."""


class GateMissed(AssertionError):
    """A number of a run is below what was asked of it."""
