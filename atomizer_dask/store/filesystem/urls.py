"""Paths and URLs of stores, and what users may have meant by half a URL."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import Any

from atomizer_dask.errors import StoreError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_SLASHES = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)[/\\]{2,}(.*)", re.DOTALL)
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos"}
_OTHERS = {"file", "local", "memory", "hdfs", "webhdfs", "http", "https", "sftp", "ssh", "ftp"}
_SCHEMES = _BUCKETS | _OTHERS | {"smb"}


def file_system_of(text: str) -> tuple[Any, str]:
    """Return the fsspec file system of a path or a URL, and the path in it.

    Raises
    ------
    StoreError
        Where it is neither; the message says what may have been meant.
    """
    import fsspec

    is_url = _is_url(text)
    try:
        return fsspec.core.url_to_fs(text if is_url else _local(text))  # type: ignore[no-any-return]
    except (ValueError, ImportError) as error:
        raise StoreError(f"cannot open the store {text!r}: {error}", error) from error


def _local(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise StoreError(f"there is no user {expanded.split('/')[0][1:]!r}, of the store {path!r}")
    return os.path.abspath(expanded)


def _is_url(text: str) -> bool:
    """Return whether a text is a URL; raises `StoreError` where it is neither that nor a path."""
    if text != text.strip():
        raise StoreError(f"the store {text!r} begins or ends with white space: leave it out")
    if text.startswith("$"):
        raise StoreError(
            f"the store {text!r} names a variable, which nobody replaces: "
            "os.path.expandvars(...) does; a folder of that name is " + repr(f"./{text}")
        )
    if (slashes := _SLASHES.fullmatch(text)) and slashes[1].lower() in _SCHEMES:
        raise _half(text, slashes[1], slashes[2])
    parts = _SCHEME.fullmatch(text)
    if parts is None:
        return "://" in text
    scheme, rest = parts[1], parts[2]
    if rest.startswith("//"):
        _check_url(text, scheme, rest[2:])
        return True
    if rest.startswith(":"):  # simplecache::s3://...
        return True
    if len(scheme) == 1:
        if os.name == "nt":
            return False
        raise StoreError(
            f"the store {text!r} is a path of Windows, which this machine knows nothing of; a "
            f"folder of that name is {f'./{text}'!r}"
        )
    if scheme.lower() in _SCHEMES or rest[:1] in ("/", "\\"):
        raise _half(text, scheme, rest)
    return False


def _check_url(text: str, scheme: str, rest: str) -> None:
    from fsspec import available_protocols
    from fsspec.registry import registry

    known = {*available_protocols(), *registry, *_SCHEMES}
    if scheme not in known:
        nearest = get_close_matches(scheme.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {f'{nearest[0]}://{rest}'!r}?" if nearest else ""
        raise StoreError(f"cannot open the store {text!r}: nothing knows {scheme!r} URLs{hint}")
    if scheme in ("file", "local") and not rest.startswith("/"):
        raise StoreError(
            f"the store {text!r} names a machine, {rest.split('/')[0]!r}, where a path of this one "
            f"begins: did you mean {f'{scheme}:///{rest}'!r}, or the path {rest!r}?"
        )
    if not rest.strip("/"):
        raise StoreError(f"the store {text!r} lacks a path: give {f'{scheme}://bucket/folder'!r}")
    if rest.startswith("/") and scheme in _BUCKETS:
        meant = f"{scheme}://{rest.lstrip('/')}"
        raise StoreError(f"the store {text!r} names no bucket: did you mean {meant!r}?")


def _half(text: str, scheme: str, rest: str) -> StoreError:
    path = rest.lstrip("/\\")
    if scheme.lower() in ("file", "local"):
        meant = f"{scheme.lower()}:///{path}"
    elif scheme.lower() in _SCHEMES:
        meant = f"{scheme.lower()}://{path}"
    else:  # as for scp
        meant = f"sftp://{scheme}/{path}"
    return StoreError(
        f"the store {text!r} is half a URL: did you mean {meant!r}? Give it as a text, for pathlib "
        f"makes one slash of two; a folder of that name is {f'./{text}'!r}"
    )
