"""Finished slices of a forecast, kept so that the same forecast can go on after an interruption.

A folder with `journal.json`, which says what forecast it belongs to, and one file a slice with the
state of its statistics, each written whole or not at all. A result is the same bits whether its
slices were computed in one run or in many.
"""

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.atomic import atomic_file, clean_leftovers, output_error
from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.errors import UsageError, printable

ABOUT = "journal.json"
OF = "of"
"""Entry of a slice's file beside the state of its statistics."""
_SCENARIO = re.compile(r"day[0-9]+-[A-Za-z]+")
_SLICE = re.compile(r"slice-[0-9]{4,}\.npz")
DAMAGED = (
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise on files that are not as written."""


def fingerprint(parts: Iterable[object]) -> str:
    """SHA-256 of everything the bits of a forecast depend on: arrays by value, others by repr."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class Journal:
    """The kept slices of one forecast."""

    def __init__(self, folder: Path, forecast: str) -> None:
        """Opens or makes a journal.

        Args:
            folder: made where it is not there.
            forecast: its `fingerprint`.

        Raises:
            UsageError: the folder holds something else (TD3055).
            OutputError, ResourceError: it cannot be written.
        """
        self.folder = folder
        self._forecast = forecast
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clean_leftovers(folder)
            found = sorted(path.name for path in folder.iterdir())
            known = (folder / ABOUT).read_bytes() if ABOUT in found else None
        except OSError as error:
            raise output_error(error, folder) from None
        about = json.dumps({"forecast": forecast}).encode()
        if not found:
            _write(folder / ABOUT, about)
        elif known != about:
            raise UsageError(
                "TD3055",
                "the work folder belongs to another forecast"
                if known
                else f"the work folder holds other files, such as {printable(found[0])}",
                where=str(folder),
                fix="give the folder of this very request, or a new one",
            )

    def load(self, at: int) -> SliceStatistics | None:
        """The kept statistics of slice `at`; None where there are none.

        A damaged file, or one of another slice or forecast, counts as none: its slice is computed
        again.
        """
        try:
            data = self._file(at).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                state = dict(kept)
            if not np.array_equal(state.pop(OF), self._of(at)):
                return None
            return SliceStatistics.restored(state)
        except DAMAGED:
            return None

    def most_samples(self, slices: Sequence[int]) -> int:
        """The largest number of samples kept of any of `slices`."""
        kept = (self.load(at) for at in slices)
        return max((statistics.count for statistics in kept if statistics), default=0)

    def save(self, at: int, statistics: SliceStatistics) -> None:
        """Keeps the statistics of slice `at`, in place of earlier ones.

        Raises:
            OutputError, ResourceError: they cannot be written.
        """
        buffer = io.BytesIO()
        state = {**statistics.state(), OF: self._of(at)}
        np.savez(buffer, **state)  # type: ignore[arg-type]  # never allow_pickle
        _write(self._file(at), buffer.getvalue())

    def _of(self, at: int) -> NDArray[np.uint8]:
        """Which slice of which forecast a file belongs to."""
        return np.frombuffer(f"{self._forecast} {at}".encode(), np.uint8)

    def _file(self, at: int) -> Path:
        return self.folder / f"slice-{at:04d}.npz"


def journal_folders(work: Path | None, names: Sequence[str]) -> list[Path | None]:
    """Where each of several forecasts keeps its journal: `work` of one, else folders in it.

    Raises:
        UsageError: `work` holds something else (TD3055).
        OutputError, ResourceError: it cannot be written.
    """
    if work is None or len(names) == 1:
        return [work] * len(names)
    try:
        work.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in work.iterdir() if path.name not in names)
    except OSError as error:
        raise output_error(error, work) from None
    if found:
        raise UsageError(
            "TD3055",
            "the work folder belongs to another forecast"
            if ABOUT in found
            else f"the work folder holds other files, such as {printable(found[0])}",
            where=str(work),
            fix="give the folder of this very request, or a new one",
        )
    return [work / name for name in names]


def discard_journal(folder: Path) -> None:
    """Removes what a `Journal` wrote, also in folders of scenarios, and folders left empty."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _SCENARIO.fullmatch(path.name):
                discard_journal(path)
        for path in folder.iterdir():
            if _SLICE.fullmatch(path.name):
                path.unlink()
        # Last: a run after an interruption here takes slices without it for someone else's.
        (folder / ABOUT).unlink(missing_ok=True)
        folder.rmdir()


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path, needed_bytes=len(data)) as file:
        file.write(data)
