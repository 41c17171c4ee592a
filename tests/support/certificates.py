"""Certificates made for a test: of a server, and what is wrong with those of others."""

from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

NAMES = ("localhost", "127.0.0.1")


def missing():
    """Return the names of what is needed to make certificates and this machine lacks."""
    return [name for name in ("trustme",) if find_spec(name) is None]


class Identity(NamedTuple):
    """What a server shows, and the key that proves it to be its own: two files."""

    certificate: Path
    key: Path


class Certificates:
    """Two authorities, and certificates that one of them signed, all in files of a folder.

    Attributes
    ----------
    authority, stranger : pathlib.Path
        Whom clients trust, and an authority that they should not.
    valid : Identity
        Of localhost and 127.0.0.1.
    expired, elsewhere, untrusted : Identity
        Not valid any more; of another host; signed by the stranger.
    """

    def __init__(self, folder):
        import trustme  # which machines without these tests need not have

        self._folder = folder
        authority, stranger = trustme.CA(), trustme.CA()
        self.authority = self._write("authority", authority.cert_pem)
        self.stranger = self._write("stranger", stranger.cert_pem)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self.valid = self._keep("valid", authority.issue_cert(*NAMES))
        self.expired = self._keep("expired", authority.issue_cert(*NAMES, not_after=yesterday))
        self.elsewhere = self._keep("elsewhere", authority.issue_cert("elsewhere.example"))
        self.untrusted = self._keep("untrusted", stranger.issue_cert(*NAMES))

    def _keep(self, name, issued):
        key = self._write(f"{name}-key", issued.private_key_pem)
        return Identity(self._write(name, issued.cert_chain_pems[0]), key)

    def _write(self, name, blob):
        path = self._folder / f"{name}.pem"
        blob.write_to_path(str(path))
        return path
