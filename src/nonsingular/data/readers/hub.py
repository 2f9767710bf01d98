"""hub.py - data sets of the Hugging Face Hub, as parquet: hf:owner/name or hf:owner/name:config.

Files in the local cache are read from there, without a network.  No code of a data set is ever executed.
"""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path
from typing import Any

from nonsingular.data.readers import arrow
from nonsingular.data.readers.raw import Raw, part_of
from nonsingular.errors import InvalidInput

log = logging.getLogger("nonsingular")

PREFIX = "hf:"
SECONDS = 5
"""How long the Hub may take to answer."""
REVISIONS = ("main", "refs/convert/parquet")
"""The second is where the Hub keeps its own conversion to parquet."""


def read(name: str) -> Raw:
    """The parquet files of a data set on the Hub, all splits.  Raises InvalidInput if it is neither cached nor reachable."""
    spec = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([\w.-]+))?", name)
    if spec is None:
        raise InvalidInput(f"'{name}' is not the name of a data set on the Hub; write hf:owner/name, or hf:owner/name:config")
    repository, config = spec[1], spec[2]
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as e:
        raise InvalidInput(f"{name} needs huggingface_hub; run: pip install 'nonsingular[hub]'. {_local(repository)}") from e
    for revision in REVISIONS:
        try:
            found = Path(hub.snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True))
            raw = _folder(name, found, config)
            log.info("%s: from the cache, %s", name, found)
        except (OSError, ValueError):  # not cached, or not whole, or another config
            continue
        return Raw(name, raw.parts, raw.classes, raw.domain)
    raw = _folder(name, _fetched(hub, name, repository, config), config)
    return Raw(name, raw.parts, raw.classes, raw.domain)


def _fetched(hub: Any, name: str, repository: str, config: str | None) -> Path:
    """The folder of the cache that the files were loaded into."""
    try:
        for revision in REVISIONS:
            about = hub.HfApi().dataset_info(repository, revision=revision, timeout=SECONDS, files_metadata=True)
            sizes = {s.rfilename: s.size or 0 for s in about.siblings or () if s.rfilename.endswith(".parquet")}
            chosen = [str(f) for f in _of_config(name, [Path(f) for f in sizes], config)] if sizes else []
            if chosen:
                log.info("%s: loading %d files, %.1f MB, from the Hub", name, len(chosen), sum(sizes[f] for f in chosen) / 1e6)
                folder = hub.snapshot_download(
                    repository, repo_type="dataset", revision=revision, allow_patterns=chosen, etag_timeout=SECONDS
                )
                return Path(folder)
    except InvalidInput:
        raise
    except Exception as e:  # the client raises those of its HTTP library, which has changed more than once
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InvalidInput(
            f"{name} is not in the cache and could not be loaded from the Hub ({why}). {_local(repository)}"
        ) from e
    raise InvalidInput(f"{name} has no parquet files on the Hub; save it with datasets' to_parquet. {_local(repository)}")


def _local(repository: str) -> str:
    name = repository.partition("/")[2]
    return f"Or get its parquet files another way and give their folder: --data ./{name}. The data set 'digits' needs no files"


def _folder(name: str, folder: Path, config: str | None) -> Raw:
    files = [f.relative_to(folder) for f in arrow.files_below(folder) if f.suffix == ".parquet"]
    if not files:
        raise InvalidInput(f"{name} has no parquet files in {folder}")
    return arrow.read(folder, [folder / f for f in _of_config(name, files, config)])


def _of_config(name: str, files: list[Path], config: str | None) -> list[Path]:
    """The files of one config: those below a folder of its name; folders named data or after a split belong to no config."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(files):
        steps = [step for step in file.parts[:-1] if step != "data" and not part_of(step)]
        groups.setdefault("/".join(steps) or "default", []).append(file)
    if config is None and len(groups) > 1 and "default" not in groups:
        raise InvalidInput(f"{name} has several configs ({', '.join(groups)}); choose one: {name}:{next(iter(groups))}")
    wanted = config or ("default" if "default" in groups else next(iter(groups)))
    if wanted not in groups:
        raise InvalidInput(f"{name}: there is no config '{wanted}'; it has {', '.join(groups)}")
    return groups[wanted]
