"""Files that appear complete or not at all, and what is left when a process dies meanwhile.

A file is written under a temporary name in its own folder, flushed to the disk, read back, and
renamed. A process that dies at any moment leaves at most temporaries, and their names hold its
process id, so that a later run removes them.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from tadiff_rt.errors import OutputError, ResourceError, TadiffError

MAX_NAME = 180
"""Bytes of a result's name: its temporary names are longer and a file name has 255."""

_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.tadiff-(?P<kind>tmp|old)-(?P<pid>[0-9]{1,9})-(?P<host>[0-9a-f]{8})[0-9a-f]{8}",
    re.DOTALL,
)

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _host_tag() -> str:
    """Process ids mean nothing on another machine that shares the disk."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_path(path: Path, kind: str) -> Path:
    """A new name next to `path`; kind "tmp" for what becomes it, "old" for what it replaces."""
    token = f"{os.getpid()}-{_host_tag()}{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.tadiff-{kind}-{token}")


def output_error(error: OSError, path: Path, needed_bytes: int | None = None) -> TadiffError:
    """What an operating system error while writing `path`, of this size, means to the user."""
    where, reason = str(path), error.strerror or str(error)
    if error.errno in _NO_SPACE:
        free = "unknown"
        with suppress(OSError):
            free = str(shutil.disk_usage(path.parent).free)
        fix = "free some space, raise the quota or the file size limit, or write elsewhere"
        what = f"the disk is full or the file too large: {reason}; {free} bytes are free"
        what += "" if needed_bytes is None else f", the file needs {needed_bytes}"
        return ResourceError("TD7002", what, where=where, fix=fix)
    if error.errno in _NOT_ALLOWED:
        fix = "choose a folder you may write to"
        return OutputError("TD8002", f"cannot be written: {reason}", where=where, fix=fix)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        fix = "create the folder first"
        return OutputError("TD8003", f"its folder does not exist: {reason}", where=where, fix=fix)
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
        return OutputError("TD8001", f"exists already: {reason}", where=where)
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP):
        return OutputError("TD8006", f"is not a usable name: {reason}", where=where)
    return OutputError("TD8007", f"writing failed: {reason}", where=where)


class _File(io.RawIOBase):
    """Unbuffered: an error surfaces in the write that caused it, and close cannot fail late."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done:])
        return done


@contextmanager
def atomic_file(
    path: Path,
    *,
    verify: Callable[[BinaryIO], None] | None = None,
    needed_bytes: int | None = None,
) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path`, replacing any file there, when the block ends.

    Args:
        path: its folder must exist.
        verify: called with the written file opened anew, before it gets its name; raises to
            reject it.
        needed_bytes: size of the file, for the error of a full disk.

    Raises:
        OutputError, ResourceError: nothing of the file is left, and a file that was at `path`
            before is still there.
    """
    temporary = temporary_path(
        path.with_name(os.fsdecode(os.fsencode(path.name)[:MAX_NAME])), "tmp"
    )
    try:
        try:
            # In here: a signal during the call is raised after it, and the file is there.
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                yield cast(BinaryIO, _File(fd))
                os.fsync(fd)
            finally:
                os.close(fd)
            if verify:
                with open(temporary, "rb") as file:
                    verify(file)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise output_error(error, path, needed_bytes) from error


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder and say so.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def remove_temporary(folder: Path) -> None:
    """Removes a folder under its temporary name, if it is there; no signal cuts it short."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def discard(aside: Path, path: Path) -> None:
    """Removes a folder that stood aside for `path`.

    It becomes a temporary first: half of it, after a crash, must not be taken for a result.
    """
    trash = temporary_path(path, "tmp")
    try:
        os.rename(aside, trash)
    finally:  # a signal during the call is raised after it, and the folder has its new name
        remove_temporary(trash)


def clean_leftovers(folder: Path) -> list[str]:
    """Removes what dead processes of this machine left in `folder`; returns the names.

    Temporaries of live processes and of other machines stay. A result that stood aside when its
    replacement never came gets its name back.
    """
    done = []
    for name in sorted(os.listdir(folder)):
        match = _TEMPORARY.fullmatch(name)
        if not match or match["host"] != _host_tag() or _alive(int(match["pid"])):
            continue
        leftover, path = folder / name, folder / match["name"]
        with suppress(OSError):
            if match["kind"] == "old" and _is_replaced(leftover, path):
                discard(leftover, path)
            elif match["kind"] == "old":
                # Fails, and leaves both, where someone has put other files there meanwhile.
                os.rename(leftover, path)
            elif leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
            done.append(name)
    return done


def _is_replaced(aside: Path, path: Path) -> bool:
    """Whether `path` is a result of the same kind: one with a manifest of the same name."""
    return any((path / manifest.name).is_file() for manifest in aside.glob("*.json"))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
