"""API keys: made once, kept as hashes in a file, found again in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from models.errors import BadSetting

logger = logging.getLogger("fucina.serving")

PREFIX = "fucina_"  # by which scanners of repositories and logs know a key
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class Key(BaseModel):
    """What is kept of a key: whose it is, its hash, until when it serves, and for what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{_NAME}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: AwareDatetime
    expires: AwareDatetime | None = None
    models: tuple[str, ...] | None = None  # which it may ask; None is every one
    admin: bool = False  # whether it may load and unload, any model

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


class Keys(BaseModel):
    """A file of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...] = ()


def digest(key: str) -> str:
    """The hash that is kept of a key.

    Plain SHA-256: a key is 256 random bits, which nobody guesses however fast a hash is. Slow
    hashes are for passwords, and would be paid with each request.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; raises `BadSetting` for one that cannot be read."""
    try:
        return Keys.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise BadSetting(f"keys {path} cannot be read", got=error.strerror) from error
    except ValidationError as error:
        # Pydantic's own text would quote what stands there.
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSetting(
            f"keys {path} cannot be read", got=f"{where} {first['msg']}".strip(),
            fix="write it with `fucina keys add`",
        ) from error  # fmt: skip


def add_key(
    path: Path,
    name: str,
    *,
    expires: datetime | None = None,
    models: tuple[str, ...] | None = None,
    admin: bool = False,
) -> str:
    """Make a key, keep its hash in the file, and return it: nothing can show it again.

    Raises `BadSetting` for a name that is taken or is none, an expiry that has passed, or some
    models only of a key that may load any.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    if not re.fullmatch(_NAME, name):
        raise BadSetting(
            "the key's name does not fit", got=repr(name),
            expected="up to 64 letters, digits, dots, dashes and underscores",
        )  # fmt: skip
    if admin and models is not None:
        raise BadSetting("a key that may load and unload may ask every model", got=models)
    kept = Key(
        name=name, sha256=digest(key), created=datetime.now(UTC), expires=expires,
        models=models, admin=admin,
    )  # fmt: skip
    if kept.expired:
        raise BadSetting("the key would have expired already", got=expires)
    with _locked(path):
        keys = read_keys(path) if path.exists() else ()
        if any(known.name == name for known in keys):
            raise BadSetting(
                f"key {name!r} is in {path} already", fix="revoke it first, or choose another name"
            )
        _write(path, (*keys, kept))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the file; raises `BadSetting` for one that is not there."""
    with _locked(path):
        keys = read_keys(path)
        left = tuple(key for key in keys if key.name != name)
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise BadSetting(f"there is no key {name!r} in {path}", expected=known)
        _write(path, left)


class KeyRing:
    """The keys of a file as it is now; of one that cannot be read any more, none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: list[tuple[bytes, Key]] = []

    def find(self, given: str) -> Key | None:
        """The key that was given, unless it is unknown or has expired."""
        self._refresh()
        hashed = digest(given).encode()
        found = None
        # Every hash is compared, whole: how long it takes says nothing of any.
        for known, key in self._keys:
            if hmac.compare_digest(known, hashed):
                found = key
        return None if found is None or found.expired else found

    def _refresh(self) -> None:
        """Read the file again when it has changed. It is replaced, never written into."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            seen = ()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = [(key.sha256.encode(), key) for key in read_keys(self._path)]
        except BadSetting as error:
            # Whoever was revoked by the file that cannot be read must not come in.
            self._keys = []
            logger.error("nobody is let in: %s", error)


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    """Replace the file at once, readable by its owner alone."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(Keys(keys=keys).model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time reads and replaces the file."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    # The folder's lock: the file itself is replaced, and a lock file would lie about.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
