"""One patient in the cache: three files that appear together or not at all.

    ENTRY/images.npy   (d, s, 3, h, w) float16 in [0, 1], the d slices around the tumour
    ENTRY/masks.npy    (d, s, h, w) bool
    ENTRY/meta.json    `Provenance`

Slices come first, so that a training window is one contiguous range of bytes. An entry is built
under a temporary name and renamed. Processes that build the same one do the work twice, and the
first to rename wins; what it has mapped stays valid whatever happens to the name.
"""

import dataclasses
import errno
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tadiff_rt.atomic import atomic_file, output_error, sync_folder, temporary_path
from tadiff_rt.case import MODALITIES, TREATMENTS, Case, ReadOptions
from tadiff_rt.errors import NiftiError, UsageError
from tadiff_rt.preprocess import DataContract, prepare
from tadiff_train.data.cohort import Subject, read_subject
from tadiff_train.data.provenance import (
    FileState,
    Provenance,
    SessionRecord,
    files_of,
    key_of,
    window_affine,
)

SLICE_MARGIN = 2
"""Slices kept beyond the first and last that hold tumour in any session."""
IMAGES, MASKS, META = "images.npy", "masks.npy", "meta.json"
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""Errors of a rename to a name that something else has."""
FIX_MASKS = {
    "bids": "add *_desc-tumour_dseg.nii.gz files under derivatives/",
    "sailor": "add EdemaMask-CL and ContrastEnhancedMask-CL of these sessions, or pass "
    "--leave-out=SUBJECT/SESSION",
    "lumiere": "pass --lumiere-images=registered or atlas, which have masks, or "
    "--leave-out=SUBJECT/SESSION",
    "npy": "add the array NAME_label.npy",
    "manifest": "name them in the column mask",
}


@dataclass(frozen=True)
class CachedCase:
    """One patient's sessions as the network sees them, memory-mapped."""

    name: str
    days: tuple[int, ...]
    treatments: tuple[int, ...]
    images: NDArray[np.float16]
    """(d, s, 3, h, w) in [0, 1]; d kept slices, s sessions."""
    masks: NDArray[np.bool_]
    """(d, s, h, w) tumour."""
    provenance: Provenance | None = None
    """None for a case that was made in memory."""


def open_entry(entry: Path) -> CachedCase | None:
    """The case of an entry; None where it is missing or not whole."""
    try:
        meta = Provenance.model_validate_json((entry / META).read_bytes())
        images = np.load(entry / IMAGES, mmap_mode="r")
        masks = np.load(entry / MASKS, mmap_mode="r")
    except (OSError, ValueError, ValidationError):
        return None
    if images.shape != meta.shape or masks.shape != (*meta.shape[:2], *meta.shape[3:]):
        return None
    days = tuple(session.day for session in meta.sessions)
    treatments = tuple(TREATMENTS[session.treatment] for session in meta.sessions)
    return CachedCase(meta.name, days, treatments, images, masks, meta)


def make_entry(
    subject: Subject, options: ReadOptions, contract: DataContract, folder: Path
) -> Path:
    """The entry of a subject in a cache folder, made unless it is there.

    Raises:
        UsageError: TD3031, sessions without a tumour mask.
        NiftiError: TD3129, files changed while they were read.
        OutputError, ResourceError: the entry cannot be written; nothing of it is left.
        TadiffError: the subject cannot be read or prepared.
    """
    files = files_of(subject)
    entry = folder / key_of(subject, options, contract, files)
    if open_entry(entry) is not None:
        return entry
    case = read_subject(subject, options)
    require_masks(case, subject.layout)
    meta, images, masks = _prepared(case, subject, options, contract, files)
    if files_of(subject) != files:
        what = "files changed while they were read"
        fix = "wait until the program that writes them has finished"
        raise NiftiError("TD3129", what, where=subject.name, fix=fix)
    _write(entry, meta, images, masks)
    return entry


def require_masks(case: Case, layout: str) -> None:
    """Requires a tumour mask of every session.

    Raises:
        UsageError: TD3031.
    """
    without = [session.name for session in case.sessions if session.mask is None]
    if without:
        raise UsageError(
            "TD3031",
            f"{case.name} has {len(without)} of {len(case.sessions)} sessions without a tumour "
            f"mask: {', '.join(without)}; training needs one for each",
            where=case.name,
            fix=FIX_MASKS[layout],
        )


def _prepared(
    case: Case,
    subject: Subject,
    options: ReadOptions,
    contract: DataContract,
    files: tuple[FileState, ...],
) -> tuple[Provenance, NDArray[np.float16], NDArray[np.bool_]]:
    num = len(case.sessions)
    prepared = prepare(case.sessions, dataclasses.replace(contract, num_sources=num))
    assert prepared.masks is not None
    keep = _slices_near(prepared.masks.any(axis=(0, 2, 3))) & prepared.brain
    d, _, h, w = prepared.sources.shape
    images = prepared.sources.reshape(d, num, len(MODALITIES), h, w)[keep].astype(np.float16)
    masks = np.ascontiguousarray(prepared.masks.swapaxes(0, 1)[keep])
    meta = Provenance(
        name=case.name,
        source=os.path.realpath(subject.path),
        layout=subject.layout,
        options=dataclasses.asdict(options),
        contract=dataclasses.asdict(contract),
        tadiff=version("tadiff"),
        sessions=tuple(SessionRecord.of(session) for session in case.sessions),
        notes=(*case.notes, *prepared.notes),
        files=files,
        shape=(len(images), num, len(MODALITIES), h, w),
        slices=tuple(np.flatnonzero(keep).tolist()),
        tumour_voxels=tuple(map(tuple, masks.sum(axis=(2, 3)).tolist())),
        affine=window_affine(prepared),
    )
    return meta, images, masks


def _slices_near(tumour: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(d,) slices from the first to the last with tumour, and a margin; none without tumour."""
    near = np.zeros_like(tumour)
    held = np.flatnonzero(tumour)
    if len(held):
        near[max(held[0] - SLICE_MARGIN, 0) : held[-1] + SLICE_MARGIN + 1] = True
    return near


def _write(
    entry: Path, meta: Provenance, images: NDArray[np.float16], masks: NDArray[np.bool_]
) -> None:
    temporary = temporary_path(entry, "tmp")
    try:
        temporary.mkdir(parents=True)
        for name, array in ((IMAGES, images), (MASKS, masks)):
            # Not np.save on a path: it writes through C, where a full disk has no error number.
            with atomic_file(temporary / name) as file:
                np.save(file, array)
        with atomic_file(temporary / META) as file:
            file.write(json.dumps(meta.model_dump(mode="json"), indent=1).encode())
        _rename(temporary, entry)
        sync_folder(entry.parent)
    except OSError as error:
        raise output_error(error, entry) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, entry: Path) -> None:
    """Gives an entry its name, unless a whole one has it; one that is not whole gives way."""
    while True:
        try:
            os.rename(temporary, entry)
            return
        except OSError as error:
            if error.errno not in TAKEN:
                raise
        if open_entry(entry) is not None:
            return
        aside = temporary_path(entry, "tmp")
        with suppress(FileNotFoundError):  # another process was faster
            os.rename(entry, aside)
            shutil.rmtree(aside, ignore_errors=True)
