"""hub.py - single files of the Hugging Face Hub: from the cache, else with one short look for the network."""

from __future__ import annotations

import importlib
import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nonsingular.errors import InvalidInput

PREFIX = "hf:"
SECONDS = 5
"""How long to wait for the Hub."""
_FORM = "hf:owner/name, hf:owner/name/file or hf:owner/name@revision/file"


def fetch(spec: str, default: str | None = None) -> Path:
    """The local path of the file that `hf:owner/name[@revision][/file]` names; downloaded if the cache does not have it.

    default: the file where the spec names none.  Without a revision a cached file is used as it is, so that all processes of a
    run read the same one.
    Raises InvalidInput for another form, without the package huggingface_hub (extra `hub`), without a network, and for a
    repository or file that is not there or not public.
    """
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", spec)
    if not found:
        raise InvalidInput(f"'{spec}' names no file of the Hugging Face Hub; write {_FORM}")
    repo, revision, name = found.groups()
    name = name or default
    if name is None:
        raise InvalidInput(f"'{spec}' names a repository, not a file; write {_FORM}")
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise InvalidInput(f"'{spec}' needs the package huggingface_hub; pip install 'nonsingular[hub]'") from None
    try:
        return Path(hub.hf_hub_download(repo, name, revision=revision, local_files_only=True))
    except Exception as e:  # not in the cache, or no such form of a name
        if not isinstance(e, OSError):
            raise InvalidInput(f"'{spec}' names no file of the Hugging Face Hub ({_first_line(e)}); write {_FORM}") from e
    _knock(spec, hub.constants.ENDPOINT)
    try:
        return Path(hub.hf_hub_download(repo, name, revision=revision, etag_timeout=SECONDS))
    except Exception as e:  # of the hub, of its HTTP client, of the disk
        raise InvalidInput(
            f"'{spec}' cannot be downloaded ({type(e).__name__}: {_first_line(e)}); "
            "check the name, log in with 'hf auth login' if it is private, or give a local file"
        ) from e


def _knock(spec: str, endpoint: str) -> None:
    """Fail at once without a network: huggingface_hub would retry for half a minute."""
    if any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    parts = urlsplit(endpoint)
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)), SECONDS).close()
    except OSError as e:
        raise InvalidInput(
            f"'{spec}' is not in the local cache, and {parts.hostname} cannot be reached ({e}); "
            "download the file elsewhere and give its path instead"
        ) from e


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
