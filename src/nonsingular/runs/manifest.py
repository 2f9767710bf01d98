"""manifest.py - the hashes of the files of a run, which tie them together, and on request a signature of these.

A manifest shows that files were changed after it was written.  A person who changes them can write it again: `verification`
checks the numbers, and a signature shows who wrote them.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput
from nonsingular.results.files import write_atomic

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
_LEFT_OUT = {MANIFEST, SIGNATURE, ".lock"}


def hashes(run: Path) -> dict[str, str]:
    """Path within the run -> sha256 of every file of it, but for locks, unfinished files and the manifest itself."""
    found: dict[str, str] = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name not in _LEFT_OUT and path.suffix != ".part":
            with path.open("rb") as file:
                found[path.relative_to(run).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def seal(run: Path) -> None:
    """Writes the manifest, last of all files.  A signature of an earlier one is removed."""
    (run / SIGNATURE).unlink(missing_ok=True)
    write_atomic(run / MANIFEST, json.dumps({"format": 1, "sha256": hashes(run)}, indent=1, sort_keys=True) + "\n")


def differences(run: Path) -> list[str]:
    """The differences from the manifest, as sentences.  Raises InvalidInput for a manifest that cannot be read."""
    path = run / MANIFEST
    if not path.is_file():
        return [f"{MANIFEST} is missing, so nothing ties the files of this run together"]
    try:
        written: Any = json.loads(path.read_text(encoding="utf-8"))
        stated = {str(name): str(value) for name, value in written["sha256"].items()}
        if written["format"] != 1:
            raise ValueError(f"format {written['format']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InvalidInput(f"{path} cannot be read ({type(e).__name__}: {e}); it is not the manifest of a run") from None
    held = hashes(run)
    changed = sorted(name for name in held.keys() & stated.keys() if held[name] != stated[name])
    return [
        *(f"{name} is missing" for name in sorted(stated.keys() - held.keys())),
        *(f"{name} is not in {MANIFEST}" for name in sorted(held.keys() - stated.keys())),
        *(f"{name} was changed after {MANIFEST} was written" for name in changed),
    ]  # fmt: skip


# --- signatures -----------------------------------------------------------------------------------------------------------


def sign(run: Path, key: Path) -> Path:
    """Signs the manifest with an Ed25519 key (PEM, as `openssl genpkey -algorithm ed25519` writes it), beside it.

    Raises InvalidInput for a run without a manifest or whose files have changed, and for another kind of key.
    """
    if wrong := differences(run):
        raise InvalidInput(f"{run} is not signed: {'; '.join(wrong[:3])}")
    private: Any = _key(key, "load_pem_private_key", {"password": None})
    write_atomic(run / SIGNATURE, private.sign((run / MANIFEST).read_bytes()))
    return run / SIGNATURE


def signed_by(run: Path, key: Path) -> bool:
    """Whether the owner of this public key (PEM) signed the manifest.  Raises InvalidInput without a signature."""
    if not (run / SIGNATURE).is_file():
        raise InvalidInput(f"{run} has no {SIGNATURE}; sign it with: nonsingular sign {run} --key KEY.pem")
    public: Any = _key(key, "load_pem_public_key", {})
    try:
        public.verify((run / SIGNATURE).read_bytes(), (run / MANIFEST).read_bytes())
    except importlib.import_module("cryptography.exceptions").InvalidSignature:
        return False
    return True


def _key(path: Path, load: str, options: dict[str, Any]) -> Any:
    try:
        serialization: Any = importlib.import_module("cryptography.hazmat.primitives.serialization")
        ed25519: Any = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as e:
        raise InvalidInput("signatures need the package cryptography; run: pip install 'nonsingular[sign]'") from e
    try:
        key = getattr(serialization, load)(path.read_bytes(), **options)
    except FileNotFoundError:
        raise InvalidInput(f"there is no key {path}") from None
    except (OSError, ValueError, TypeError) as e:
        raise InvalidInput(
            f"{path} is not a key in PEM form without a password ({str(e).splitlines()[0] if str(e) else e!r})"
        ) from e
    if not isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        raise InvalidInput(f"{path} is another kind of key; give an Ed25519 one: openssl genpkey -algorithm ed25519 -out KEY.pem")
    return key
