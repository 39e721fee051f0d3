"""The folder where tadiff keeps what it can make again: measured speeds, engines of libraries.

It is $TADIFF_CACHE, or tadiff in the user's cache folder. Engines in it are native code, so nobody
else may be able to write there.
"""

import os
import stat
from pathlib import Path

from tadiff_rt.atomic import output_error
from tadiff_rt.errors import EngineError, OutputError

VARIABLE = "TADIFF_CACHE"


def cache_root() -> Path:
    """Where the cache lies; it may not exist yet."""
    asked = os.environ.get(VARIABLE)
    if asked:
        return Path(asked)
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "tadiff"
    except RuntimeError:  # a user without a home
        what = "there is no home folder for a cache"
        raise OutputError("TD8003", what, fix=f"set {VARIABLE} to a folder") from None


def cache_folder(*names: str) -> Path:
    """A folder of the cache, made if need be, that only this user can write to.

    Raises:
        EngineError: TD5007, it is a link, belongs to somebody else, or others can write to it.
        OutputError, ResourceError: it cannot be made.
    """
    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check(folder)
        for name in names:
            folder = folder / name
            folder.mkdir(exist_ok=True, mode=0o700)
            _check(folder)
    except OSError as e:
        raise output_error(e, folder) from None
    return folder


def _check(folder: Path) -> None:
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISDIR(status.st_mode):
        raise _refused(folder, "is a link or not a folder")
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise _refused(folder, f"belongs to user {status.st_uid}, not to {os.geteuid()}")
    if stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refused(folder, f"can be written to by others (mode {status.st_mode & 0o777:o})")


def _refused(folder: Path, why: str) -> EngineError:
    return EngineError(
        "TD5007",
        f"the cache folder {why}",
        where=str(folder),
        fix=f"chmod 700 it, or set {VARIABLE} to a folder of your own",
    )
