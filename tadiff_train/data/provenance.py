"""What a cached patient was made from, and when that has changed."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from tadiff_rt.case import MODALITIES, ReadOptions, Session
from tadiff_rt.preprocess import DataContract, Prepared
from tadiff_rt.readers.folders import NPY_IMAGE, entries
from tadiff_rt.readers.label_table import SUFFIX as LABEL_TABLE
from tadiff_rt.readers.npy import AXES as NPY_ARRAYS
from tadiff_rt.readers.visits import TABLE
from tadiff_train.data import manifest
from tadiff_train.data.cohort import Subject, options_of

CACHE_FORMAT = 2
READ_SUFFIXES = (".nii", ".nii.gz", ".npy", ".tsv", ".csv", ".txt")
"""Of the files that a reader of folders looks at."""

FileState = tuple[str, int, int]
"""Path, size in bytes and time of the last change in nanoseconds; 0 of a folder, -1 where there is
neither."""


class SessionRecord(BaseModel):
    """One session of a cached patient."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    day: int
    treatment: str
    sha256: dict[str, str]
    """Of voxels and affine of t1, t1c, flair and mask, as `Volume.sha256`."""

    @classmethod
    def of(cls, session: Session) -> "SessionRecord":
        """The record of a session that has a mask."""
        volumes = {name: session.images[name] for name in MODALITIES}
        if session.mask is not None:
            volumes["mask"] = session.mask
        digests = {name: volume.sha256 for name, volume in volumes.items()}
        return cls(name=session.name, day=session.day, treatment=session.treatment, sha256=digests)


class Provenance(BaseModel):
    """Where a cached patient comes from, and where its slices lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    """Path that was read, links resolved."""
    layout: str
    options: dict[str, object]
    """`ReadOptions` of the cohort."""
    contract: dict[str, object]
    """`DataContract`, whose `num_sources` does not matter here."""
    tadiff: str
    """Version that wrote the entry."""
    sessions: tuple[SessionRecord, ...]
    notes: tuple[str, ...]
    """What the reader had to assume or relax, and what is unusual about the images."""
    files: tuple[FileState, ...]
    shape: tuple[int, int, int, int, int]
    """(d, s, 3, h, w) of the images."""
    slices: tuple[int, ...]
    """Of each of the d slices, its number in the head, counted from superior."""
    tumour_voxels: tuple[tuple[int, ...], ...]
    """(d, s)"""
    affine: tuple[tuple[float, ...], ...]
    """(4, 4) (row, column, number of the slice) -> RAS+ millimetres."""


def files_of(subject: Subject) -> tuple[FileState, ...]:
    """The state of every file and folder that reading a subject can depend on.

    These are more than are read: a second T1 beside the first would make it ambiguous.
    """
    path = subject.path
    if subject.layout == "manifest":
        named = manifest.files_in(path, subject.name if subject.is_one_of_several else "")
        return _states(named)
    if path.name.endswith(NPY_IMAGE):
        stem = path.name.removesuffix(NPY_IMAGE)
        return _states(path.with_name(f"{stem}_{array}.npy") for array in NPY_ARRAYS)
    derivatives = path.parent / "derivatives"
    pipelines = [derivatives / name for name in entries(derivatives)]
    folders = [path, *(pipeline / path.name for pipeline in pipelines)]
    tables = [file for pipeline in pipelines for file in pipeline.glob(f"*{LABEL_TABLE}")]
    files = [file for folder in folders for file in _below(folder)]
    return _states([*files, *tables, path.parent / TABLE])


def key_of(
    subject: Subject,
    options: ReadOptions,
    contract: DataContract,
    files: tuple[FileState, ...],
) -> str:
    """The name of a subject's entry: another one whenever something it depends on has changed.

    That is its path and layout, the options (but not which sessions others leave out), the
    contract, this program, its folders, and name, size and time of change of its files. Their
    contents are not hashed, which would take as long as reading the cohort at every start; a file
    replaced by one of equal size under an equal time goes unnoticed.
    """
    source = [os.path.realpath(subject.path), subject.name, subject.layout]
    made_by = [CACHE_FORMAT, version("tadiff")]
    options = options_of(subject, options)
    key = json.dumps([made_by, source, asdict(options), asdict(contract), files])
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def window_affine(prepared: Prepared) -> tuple[tuple[float, ...], ...]:
    """(4, 4) (row, column, number of the slice) of the network's window -> RAS+ millimetres."""
    shift = np.eye(4)
    shift[:2, 3] = prepared.window.start
    return tuple(map(tuple, (prepared.grid.affine @ shift).tolist()))


def _states(paths: Iterable[Path]) -> tuple[FileState, ...]:
    states = []
    for path in paths:
        try:
            status = os.stat(path)
            # Size and time of a folder change with files that nobody reads.
            is_folder = stat.S_ISDIR(status.st_mode)
            size, changed = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
            states.append((str(path), size, changed))
        except OSError:
            states.append((str(path), -1, -1))
    return tuple(sorted(states))


def _below(folder: Path) -> Iterator[Path]:
    """Folders, which may be sessions, and files that a reader could look at.

    Links to folders are followed, each folder once.
    """
    seen = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(name)
        yield from (Path(name, file) for file in files if file.lower().endswith(READ_SUFFIXES))
