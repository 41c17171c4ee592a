"""Signatures, by a key that only this user can read: whether this user wrote a pickle.

Reading a pickle runs code, and a store from somebody else may hold any code. A pickle that a
process of this user signed is read without asking, as Jupyter does with notebooks.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path

logger = logging.getLogger(__name__)

_BYTES = 32


def sign(content: bytes) -> str:
    """Return the signature of a content, for `is_own`; empty where no key can be read or made."""
    key = _key()
    return "" if key is None else hmac.new(key, content, hashlib.sha256).hexdigest()


def is_own(content: bytes, signature: str) -> bool:
    """Return whether a process of this user signed just this content."""
    expected = sign(content)
    return bool(expected) and hmac.compare_digest(expected.encode(), signature.encode())


def _key() -> bytes | None:
    path = _place()
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes()
    except OSError as error:
        logger.debug("no key for signatures at %s: %s", path, error)
        return None
    return key if len(key) == _BYTES else None


def _place() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "atomizer_dask" / "key"


def _make(path: Path) -> None:
    """Make the key file, for this user alone; of several processes at once, one succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"key-{secrets.token_hex(8)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(_BYTES))
    try:
        os.link(temporary, path)
    except FileExistsError:
        logger.debug("another process made %s", path)
    finally:
        temporary.unlink()
