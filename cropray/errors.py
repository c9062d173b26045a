"""Errors that a user can correct, and the text of their messages. Standard library only."""

from __future__ import annotations

import difflib
import errno
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

_LONGEST_NAME = 100  # bytes
_FREE_SPACE = "Free some space and run the same command again. Finished work is kept."
_PERMISSION = "Change the permissions, or choose another place."
_FILE_IN_THE_WAY = "A file is in the way of a folder. Choose another --run folder."
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "Choose a place that is not read-only.",
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.EISDIR: "A folder is in the way of a file. Choose another name.",
}
# To the last @: a password may contain @ and /. A variable in its place is no secret.
_USER_INFO = re.compile(r"(?<!sqlite:)//(?!\w*:\$\{\w+\}@)\S*@")
# Signatures, tokens and keys in queries: of Azure (sig), AWS, Google (X-…), STAC services and object stores.
_IN_QUERY = re.compile(
    r"([?&](?:sig|x-(?:amz|goog)-[\w-]+|(?:[\w-]*[-_])?(?:signature|token|(?:api)?key|secret|password))=)[^&\s\"'<>\\)]+",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"\$\{\w+\}")


class InputError(ValueError):
    """Unusable input. The message says what was given, where, what was wanted and what to do."""


class DivergedError(InputError):
    """A training whose numbers are no longer finite, whatever the data: its settings must change."""


def format_error(error: Exception) -> str:
    """The message of an error for its row in a table; the repr of one whose text alone says too little."""
    if isinstance(error, OSError) and error.errno is not None:
        return redacted(format_os_error(error))
    return redacted(str(error) if isinstance(error, InputError | OSError) else repr(error))


def format_os_error(error: OSError) -> str:
    """What went wrong with which file, and what the user can do about it."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.filename and is_full(error):
        what += f" ({free_space(error.filename)})"
    remedy = _REMEDIES.get(error.errno or 0, "Remove the cause and run the same command again.")
    return f"{what}. {remedy}"


def is_full(error: OSError) -> bool:
    """Whether the disk is full, or the user's quota of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_lasting(error: OSError) -> bool:
    """Whether the error returns on every attempt until the user removes its cause."""
    return error.errno in _REMEDIES


def free_space(path: str | Path) -> str:
    """The free space on the disk of a file that exists or was to be written."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free in {folder}"


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The last sentence of a message about an unknown name: the nearest known one, else all of them."""
    names = sorted({name for name in known if name})
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(names) or 'none'}."


def listed(items: Sequence[str], most: int = 8) -> str:
    """Items on indented lines of a message: the first `most`, and how many more there are."""
    more = [f"… and {len(items) - most} more"] if len(items) > most else []
    return "\n".join(f"  {item}" for item in [*items[:most], *more])


def counted(count: int, noun: str) -> str:
    """A count with its noun, as in "1 scene" and "1,200 scenes". Nouns take an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def check_name(name: str) -> str:
    """The name itself. Raises InputError if it cannot name a file or a folder of a run."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(
            f"{name!r} cannot name a file. Begin with a letter or a digit, and use these, '-', '_' and '.'."
        )
    if len(name.encode()) > _LONGEST_NAME:  # file systems take 255 bytes, and suffixes are added
        raise InputError(f"{name[:20]!r}… has more than {_LONGEST_NAME} bytes. Give it a shorter name.")
    return name


def redacted(text: str) -> str:
    """A text without the user names, passwords, signatures and keys in its URIs."""
    return _IN_QUERY.sub(r"\1…", _USER_INFO.sub("//…@", text))


def check_no_password(uri: str) -> str:
    """The URI itself. Raises InputError if it contains a password, unless `${VARIABLE}` takes its place.

    Settings and the URI of a run are written to many records, so they must not hold one. User information
    of an HTTP address counts as a password, because it may be a token.
    """
    scheme, _, rest = uri.partition("://")
    host = rest.partition("/")[0]
    if "@" not in host and ":" in host and not host.rpartition(":")[2].isdecimal():
        host = rest  # this is no port but the beginning of a password that contains a slash
    user, colon, password = host.rpartition("@")[0].partition(":")
    if not colon and scheme.startswith("http"):
        password = user
    if (password and not _VARIABLE.fullmatch(password)) or _IN_QUERY.search(uri):
        raise InputError(
            f"{redacted(uri)} contains a password or a key, which the records of a run would show. Leave it "
            "out and set the variables of the service (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD). tracking.uri may name a variable of "
            "yours instead: postgresql://USER:${VARIABLE}@HOST/DATABASE"
        )
    return uri
