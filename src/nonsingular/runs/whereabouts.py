"""whereabouts.py - where model and data lie now, for settings that were written elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput
from nonsingular.models.loading import is_code


@dataclass(frozen=True)
class Whereabouts:
    """Where model and data lie now, where that is not where the settings say."""

    model: str | None = None
    weights: Path | None = None
    data: str | None = None
    data_dir: Path | None = None

    def located(self, settings: Any, run: Path, command: str) -> Any:
        """The settings with what they name at the place where it is now.

        command: what the user typed up to the options, for the error.
        Raises InvalidInput for a model that is code, unless the user has named it.
        """
        if self.model is None and is_code(seen_from(settings.model, run)):
            raise InvalidInput(
                f"the model of this run is '{settings.model}', which is code and would be run; if you trust it, name it: "
                f"{command} --model {settings.model}"
            )
        found = {name: given or seen_from(getattr(settings, name), run) for name, given in vars(self).items()}
        found["indices"] = seen_from(settings.indices, run)
        paths = ("weights", "data_dir", "indices")
        return settings.model_copy(update={k: Path(v) if v and k in paths else v for k, v in found.items()})


AS_SAID = Whereabouts()


def seen_from(value: Any, run: Path) -> Any:
    """A path of the settings where it lies: seen from here, from the run, or from a folder above it."""
    if value is None or Path(value).is_absolute() or Path(value).exists():
        return value
    above = (folder / str(value) for folder in (run.resolve(), *run.resolve().parents))
    return next((str(p) for p in above if p.exists()), value)
