"""options.py - flags: those of settings, from the one schema; and those that say where a run works and what it shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from nonsingular.errors import InvalidInput
from nonsingular.settings import GridSettings, Settings, to_yaml
from nonsingular.untrusted import read_config

if TYPE_CHECKING:
    from nonsingular.runs.engine import Workplace

S = TypeVar("S", bound=Settings)
GIVEN = Parameter(name="*")
"""A parameter whose fields are flags."""

# --- settings as flags ----------------------------------------------------------------------------------------------------


def flags(schema: type[Settings], *, without: Sequence[str] = (), names: Mapping[str, str] | None = None) -> type:
    """A class with a field for each setting that has a description: cyclopts makes a flag of it, with the description as its
    help.

    A flag holds what was typed, or None; the schema alone says what it may be.  Settings within settings are flags like the
    others.  without: settings that are not flags.  names: names of flags that differ from those of their settings.
    """
    found: list[tuple[str, Any, Any]] = []
    for name, (path, info) in _settings(schema, names or {}).items():
        if name not in without:
            kind = bool if info.annotation is bool else str
            hint = Annotated[kind | None, Parameter(help=info.description)]
            found.append((name, hint, field(default=None, metadata={"path": path})))
    made = make_dataclass(schema.__name__.replace("Settings", "Flags"), found, frozen=True, kw_only=True)
    made.__module__ = __name__  # cyclopts looks into no class of the standard library, such as one of the module "types"
    return made


def _settings(schema: type[Settings], names: Mapping[str, str], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Flag -> (the place of its setting, its field in the schema)."""
    found: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        here = (*path, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            found |= _settings(info.annotation, names, here)
        elif info.description:
            found[names.get(".".join(here), name)] = here, info
    return found


def typed_settings(given: Any) -> dict[str, Any]:
    """What was typed, as nested settings.  given: None if no flag was."""
    found: dict[str, Any] = {}
    for f in fields(given) if given is not None else ():
        if (value := getattr(given, f.name)) is not None:
            *outer, last = f.metadata["path"]
            at = found
            for part in outer:
                at = at.setdefault(part, {})
            at[last] = value
    return found


def help_of(schema: type[Settings], name: str) -> Parameter:
    """The help of one setting, for a separate parameter."""
    return Parameter(help=schema.model_fields[name].description)


def laid_over(winner: Mapping[str, Any], loser: Mapping[str, Any]) -> dict[str, Any]:
    """`winner` laid over `loser`, mapping by mapping."""
    merged = dict(loser)
    for key, value in winner.items():
        if isinstance(value, Mapping) and key in merged:
            if not isinstance(merged[key], Mapping):
                raise InvalidInput(f"{key} is {merged[key]!r}; give a mapping of settings to values")
            value = laid_over(value, merged[key])
        merged[key] = value
    return merged


def over_file(given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """What a file says, if there is one, with the flags laid over it."""
    return laid_over(given, read_config(file) if file else {})


def computed(chosen: Mapping[str, Any], file: Path | None, *, doubles: bool = False) -> dict[str, Any]:
    """Settings with their device by name: that of the flag or file, or without a file the best that is there.

    doubles: float64 is needed.
    """
    from nonsingular.network.devices import device_of

    asked = chosen.get("device", "auto" if file is None else "cpu")
    doubles = doubles or chosen.get("dtype") == "float64"
    return {**chosen, "device": str(device_of(asked, doubles=doubles)) if asked == "auto" else asked}


# --- flags that no number depends on --------------------------------------------------------------------------------------

Model = Annotated[str | None, help_of(GridSettings, "model")]
DataDir = Annotated[Path | None, help_of(GridSettings, "data_dir")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, Parameter(negative="", help="No progress on stderr.")]
Track = Annotated[
    str | None, Parameter(help="Also send the results to tensorboard or mlflow, which must be installed. Default: to neither.")
]
Preflight = Annotated[
    bool,
    Parameter(negative="", help="Show within 30 s how long it will take, what moves and what can be certified, and stop."),
]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the work is done: not a setting of the run, because its results do not depend on it."""

    workers: Annotated[int | None, Parameter(help="Processes, one thread each. Default: the number of cores.")] = None
    engine: Annotated[str, Parameter(help="Where the work is done: local, or ray (extra 'ray'). The results are the same.")] = (
        "local"
    )
    address: Annotated[
        str | None,
        Parameter(help="Ray cluster to join: host:port or auto. Its CPUs then count, not --workers. Default: a new local Ray."),
    ] = None

    def workplace(self) -> Workplace:
        from nonsingular.runs.engine import Workplace

        if self.workers is not None and self.address is not None:
            raise InvalidInput(
                f"--workers {self.workers} and --address {self.address}: the CPUs of the cluster count; leave --workers out"
            )
        return Workplace(_cores() if self.workers is None else self.workers, self.engine, self.address)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where settings come from, where results go, and what is shown."""

    config: Annotated[Path | None, Parameter(help="YAML file of settings; flags win over it. Default: none.")] = None
    out: Annotated[
        Path | None,
        Parameter(
            help="Run directory. The same settings go on where they ended; other settings are refused. Default: a folder "
            "in runs/ named after them."
        ),
    ] = None
    json: Json = False
    quiet: Quiet = False
    print_config: Annotated[bool, Parameter(negative="", help="Print the effective settings as YAML and stop.")] = False

    @property
    def silent(self) -> bool:
        """Whether stderr stays empty."""
        return self.quiet or self.json


HERE, SHOWN = Where(), Output()


def print_settings(settings: Settings) -> None:
    print(to_yaml(settings), end="")


def folder_of(command: str, settings: Any) -> Path:
    """The default run directory: a different name for each model and for each other settings."""
    import hashlib

    return Path("runs") / f"{command}-{settings.label}-{hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
