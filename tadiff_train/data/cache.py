"""Prepared sessions on disk: every patient read once, then mapped into memory."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tadiff_rt.case import TREATMENTS, Case
from tadiff_rt.errors import UsageError
from tadiff_rt.preprocess import DataContract, prepare
from tadiff_rt.readers import read_case
from tadiff_train.network import NUM_MODALITIES

CACHE_FORMAT = 1
SLICE_MARGIN = 2
"""Slices kept beyond the first and last that hold tumour in any session."""


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


def subjects(root: Path) -> list[Path]:
    """Subject folders of a BIDS data set, in order of name."""
    found = sorted(p for p in root.glob("sub-*") if p.is_dir())
    if not found:
        raise UsageError(
            "TD3030",
            f"{root} holds no sub-* folder",
            fix="give the root of a BIDS data set, e.g. one made by `tadiff-train phantom`",
        )
    return found


def cache_cases(
    root: Path,
    contract: DataContract,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[CachedCase]:
    """Reads and prepares every subject of a BIDS data set once; later calls map the result.

    The key of an entry covers the subject's table, the contract and the format, so that another
    contract never meets an old entry.
    """
    found = subjects(root)
    cases = []
    for i, subject in enumerate(found):
        cases.append(_cached(subject, contract, folder))
        if progress is not None:
            progress(i + 1, len(found))
    return cases


def _cached(subject: Path, contract: DataContract, folder: Path) -> CachedCase:
    tables = b"".join(p.read_bytes() for p in sorted(subject.glob("*_sessions.tsv")))
    key = json.dumps([CACHE_FORMAT, str(subject.resolve()), dataclasses.asdict(contract)])
    entry = folder / hashlib.sha256(key.encode() + tables).hexdigest()[:24]
    if not (entry / "meta.json").exists():
        _write_entry(entry, read_case(subject), contract)
    meta = json.loads((entry / "meta.json").read_text())
    return CachedCase(
        meta["name"],
        tuple(meta["days"]),
        tuple(meta["treatments"]),
        np.load(entry / "images.npy", mmap_mode="r"),
        np.load(entry / "masks.npy", mmap_mode="r"),
    )


def _write_entry(entry: Path, case: Case, contract: DataContract) -> None:
    num = len(case.sessions)
    prepared = prepare(case.sessions, dataclasses.replace(contract, num_sources=num))
    if prepared.masks is None:
        raise UsageError(
            "TD3031",
            f"{case.name} has sessions without a tumour mask; training needs one for each",
            fix="add *_dseg.nii.gz files under derivatives/",
        )
    keep = _slices_near(prepared.masks.any(axis=(0, 2, 3))) & prepared.brain
    d, _, h, w = prepared.sources.shape
    images = prepared.sources.reshape(d, num, NUM_MODALITIES, h, w)[keep].astype(np.float16)
    entry.mkdir(parents=True, exist_ok=True)
    np.save(entry / "images.npy", images)
    np.save(entry / "masks.npy", np.ascontiguousarray(prepared.masks.swapaxes(0, 1)[keep]))
    meta = {
        "name": case.name,
        "days": [s.day for s in case.sessions],
        "treatments": [TREATMENTS[s.treatment] for s in case.sessions],
    }
    # Last, and by renaming: an entry with this file is complete.
    part = entry / f".meta.json.{os.getpid()}.part"
    part.write_text(json.dumps(meta))
    os.replace(part, entry / "meta.json")


def _slices_near(tumour: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(d,) slices from the first to the last with tumour, and a margin; none without tumour."""
    near = np.zeros_like(tumour)
    held = np.flatnonzero(tumour)
    if len(held):
        near[max(held[0] - SLICE_MARGIN, 0) : held[-1] + SLICE_MARGIN + 1] = True
    return near


class TrainingDomain(BaseModel):
    """Limits of the training data, for the model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    treatments: dict[str, int]
    max_day: int
    max_horizon_days: int


def training_domain(cases: Sequence[CachedCase]) -> TrainingDomain:
    """Treatments that occur, the latest day, and the longest gap between neighbouring sessions."""
    codes = {code for case in cases for code in case.treatments}
    gaps = [b - a for case in cases for a, b in itertools.pairwise(case.days)]
    return TrainingDomain(
        treatments={name: code for name, code in TREATMENTS.items() if code in codes},
        max_day=max((case.days[-1] for case in cases), default=0),
        max_horizon_days=max(gaps, default=0),
    )
