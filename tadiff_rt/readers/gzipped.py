"""Forward-only reading of one regular file, plain or gzip, with nothing inflated unasked.

A gzip stream is read to its very end, so its CRC and length are checked: a reader that stops at
the last voxel misses four of five single bit flips.
"""

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tadiff_rt.errors import NiftiError

GZIP_MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 1 << 18
MAX_SURPLUS_BYTES = 1 << 16
"""How far `finish` inflates beyond the last voxel to tell a damaged stream from a longer one."""


class ByteSource:
    """The contents of one open file, inflated where it is gzip; made by `open_source`."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        self._file = file
        self._label = label
        self._pending = file.read(CHUNK_BYTES)
        self.is_gzip = self._pending.startswith(GZIP_MAGIC)
        self.is_empty = not self._pending
        self._inflater = zlib.decompressobj(wbits=31) if self.is_gzip else None

    def read(self, num_bytes: int) -> bytes:
        """The next `num_bytes`, or fewer where the content ends.

        Raises:
            NiftiError: TD3104, TD3105 or TD3106, where the gzip stream is cut, damaged or
                followed by something else.
        """
        out = bytearray()
        while len(out) < num_bytes:
            piece = self._next_piece(num_bytes - len(out))
            if not piece:
                break
            out += piece
        return bytes(out)

    def read_into(self, buffer: memoryview) -> int:
        """Fills `buffer` from the front; returns the bytes written, fewer where content ends."""
        at = 0
        while at < len(buffer):
            piece = self._next_piece(min(len(buffer) - at, 1 << 20))
            if not piece:
                break
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        return at

    def finish(self) -> None:
        """Checks that the content ends here and, for gzip, that the checksum holds."""
        if surplus := self.read(MAX_SURPLUS_BYTES):
            more = "at least " if len(surplus) == MAX_SURPLUS_BYTES else ""
            raise NiftiError(
                "TD3106",
                f"{more}{len(surplus)} bytes follow the last voxel that the header declares",
                where=self._label,
                fix="the header and the data disagree; export the image again",
            )

    def _next_piece(self, max_bytes: int) -> bytes:
        """Some bytes, at most `max_bytes`; empty only at the end of the content."""
        if self._inflater is None:
            self._pending = self._pending or self._file.read(CHUNK_BYTES)
            piece, self._pending = self._pending[:max_bytes], self._pending[max_bytes:]
            return piece
        while True:
            if self._inflater.eof and not self._next_member():
                return b""
            self._pending = self._pending or self._file.read(CHUNK_BYTES)
            if piece := self._inflate(max_bytes):
                return piece

    def _inflate(self, max_bytes: int) -> bytes:
        assert self._inflater is not None
        at_end = not self._pending
        try:
            piece = self._inflater.decompress(self._pending, max_bytes)
        except zlib.error as error:
            raise NiftiError(
                "TD3105",
                f"the gzip data are damaged: {str(error).rpartition(': ')[2]}",
                where=self._label,
                fix="copy or export the file again; its checksum does not match",
            ) from error
        self._pending = self._inflater.unused_data or self._inflater.unconsumed_tail
        if at_end and not piece and not self._inflater.eof:
            raise NiftiError(
                "TD3104",
                "the gzip data end early: the file is cut off",
                where=self._label,
                fix="copy or download the file again",
            )
        return piece

    def _next_member(self) -> bool:
        """Starts the next gzip member (pigz and bgzip write several); False at end of file."""
        while len(self._pending) < len(GZIP_MAGIC) and (more := self._file.read(CHUNK_BYTES)):
            self._pending += more
        if not self._pending:
            return False
        if not self._pending.startswith(GZIP_MAGIC):
            raise NiftiError(
                "TD3106",
                "bytes that are not gzip follow the end of the gzip data",
                where=self._label,
                fix="copy or download the file again",
            )
        self._inflater = zlib.decompressobj(wbits=31)
        return True


@contextmanager
def open_source(path: str | os.PathLike[str], label: str) -> Iterator[ByteSource]:
    """Opens a regular file once; a pipe, device or folder is refused without being read.

    Raises:
        NiftiError: TD3121 not a regular file, TD3122 missing, TD3123 unreadable, TD3129 changed
            while it was read.
    """
    try:
        with os.fdopen(open_regular(path, label), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            yield ByteSource(file, label)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise NiftiError(
            "TD3123", f"the file cannot be read: {error.strerror or error}", where=label
        ) from error
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise NiftiError(
            "TD3129",
            "the file changed while it was read",
            where=label,
            fix="wait until the program that writes it has finished",
        )


def open_regular(path: str | os.PathLike[str], label: str) -> int:
    """A descriptor of a regular file; a pipe, device or folder is refused."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except PermissionError as error:
        raise NiftiError(
            "TD3123",
            f"the file cannot be read: {error.strerror}",
            where=label,
            fix="give the user who runs this command read permission",
        ) from error
    except (OSError, ValueError) as error:
        # A socket cannot be opened; a NUL in the name is a ValueError.
        if isinstance(error, OSError) and _exists(path):
            raise _not_regular(label) from error
        reason = getattr(error, "strerror", None) or str(error)
        why = "" if isinstance(error, FileNotFoundError) else f": {reason}"
        raise NiftiError("TD3122", f"there is no such file{why}", where=label) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(label)
    return descriptor


def _exists(path: str | os.PathLike[str]) -> bool:
    try:
        return Path(path).exists()
    except OSError:
        return False


def _not_regular(label: str) -> NiftiError:
    return NiftiError(
        "TD3121",
        "this is not a regular file but a folder, pipe, socket or device",
        where=label,
        fix="give the path of a .nii or .nii.gz file",
    )
