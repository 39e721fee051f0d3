"""Prepared sessions on disk: every patient read once, then mapped into memory."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tadiff_rt.atomic import clean_leftovers, output_error
from tadiff_rt.case import TREATMENTS, ReadOptions
from tadiff_rt.console import say
from tadiff_rt.errors import OutputError, ResourceError, TadiffError, raise_findings
from tadiff_rt.preprocess import DataContract
from tadiff_train.data.cohort import Subject, find_subjects, findings_of, subjects
from tadiff_train.data.entry import CachedCase, make_entry, open_entry
from tadiff_train.data.findings import LeftOut, left_out_table, merged

__all__ = [
    "CachedCase",
    "Cohort",
    "TrainingDomain",
    "cache_cases",
    "cache_cohort",
    "subjects",
    "training_domain",
]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cohort:
    """The patients of a data set that can be trained on, and the others."""

    cases: tuple[CachedCase, ...]
    left_out: tuple[LeftOut, ...]


def cache_cases(
    root: Path,
    contract: DataContract,
    folder: Path,
    progress: Progress | None = None,
    *,
    options: ReadOptions | None = None,
    skip_bad: bool = False,
    jobs: int = 1,
) -> list[CachedCase]:
    """The cases of `cache_cohort`; who was left out is said on stderr.

    Raises:
        TadiffError: as `cache_cohort`.
    """
    cohort = cache_cohort(
        root, contract, folder, progress, options=options, skip_bad=skip_bad, jobs=jobs
    )
    if cohort.left_out:
        say(left_out_table(cohort.left_out, len(cohort.cases) + len(cohort.left_out)))
    return list(cohort.cases)


def cache_cohort(
    root: Path,
    contract: DataContract,
    folder: Path,
    progress: Progress | None = None,
    *,
    options: ReadOptions | None = None,
    skip_bad: bool = False,
    jobs: int = 1,
) -> Cohort:
    """Reads and prepares every subject of a cohort once; later calls map what they find.

    An entry is used as long as nothing it depends on has changed (`provenance.key_of`).

    Args:
        root: as `find_subjects` takes it.
        contract: what the network is fed; `num_sources` does not matter.
        folder: of the cache; made if need be.
        progress: called with (subjects done, subjects).
        options: of all subjects (see `read_subject`).
        skip_bad: leave out subjects that cannot be used, instead of refusing the cohort.
        jobs: processes that read; with more than one, a script needs the usual guard
            `if __name__ == "__main__"`, since they are spawned.

    Raises:
        TadiffError: the first problem of the cohort, carrying those of all other subjects.
        OutputError, ResourceError: the cache cannot be written; TD8021, it lies in a subject.
    """
    options = options or ReadOptions()
    found = find_subjects(root, options)
    _require_outside(folder, found)
    _clean(folder)
    cases, left_out = [], []
    make = partial(_make, options=options, contract=contract, folder=folder)
    for i, (subject, made) in enumerate(zip(found, _each(make, found, jobs), strict=True)):
        if isinstance(made, Path):
            cases.append(_opened(made))
        else:
            left_out.append(LeftOut(subject, findings_of(subject, _raised(made))))
        if progress is not None:
            progress(i + 1, len(found))
    if not (skip_bad and cases):
        raise_findings(merged([finding for one in left_out for finding in one.findings]))
    return Cohort(tuple(cases), tuple(left_out))


def _require_outside(folder: Path, found: Sequence[Subject]) -> None:
    """A cache among the files of a subject would change what it was made from."""
    real = Path(os.path.realpath(folder))
    for subject in found:
        if os.path.isdir(subject.path) and real.is_relative_to(os.path.realpath(subject.path)):
            what = f"the cache would lie among the images of {subject.name}"
            raise OutputError("TD8021", what, where=str(folder), fix="put it beside the data")


def _clean(folder: Path) -> None:
    """Removes what killed processes left of entries."""
    try:
        if os.path.isdir(folder):
            clean_leftovers(folder)
    except OSError as error:
        raise output_error(error, folder) from error


PATIENCE_S = 2.0
"""For an entry that was there: a process that found it torn just before may be about to give the
name to its own, which is the same."""

Plain = tuple[type[TadiffError], str, str, str, str]
"""A finding as it travels between processes: errors with a keyword cannot be unpickled."""


def _make(
    subject: Subject, *, options: ReadOptions, contract: DataContract, folder: Path
) -> Path | list[Plain]:
    """The entry of a subject, or what stands against it."""
    try:
        return make_entry(subject, options, contract, folder)
    except TadiffError as error:
        return [(type(e), e.code, e.message, e.where, e.fix) for e in error.findings]


def _raised(findings: Sequence[Plain]) -> TadiffError:
    """The error that `raise_findings` would raise."""
    first, *others = (
        kind(code, message, where=where, fix=fix) for kind, code, message, where, fix in findings
    )
    first.others = tuple(others)
    return first


def _each(
    make: Callable[[Subject], Path | list[Plain]], found: Sequence[Subject], jobs: int
) -> Iterator[Path | list[Plain]]:
    """Results in order of subject, from this process or from `jobs` others."""
    if jobs == 1:
        yield from map(make, found)
        return
    # Spawned, not forked: the caller may hold threads of torch or of a progress bar.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(make, found)
        except BrokenProcessPool:
            what = "a process that read the cohort was killed, as happens when memory runs out"
            raise ResourceError("TD7001", what, fix="read with fewer jobs") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _opened(entry: Path) -> CachedCase:
    case = open_entry(entry)
    deadline = time.monotonic() + PATIENCE_S
    while case is None and time.monotonic() < deadline:
        time.sleep(0.01)
        case = open_entry(entry)
    if case is None:
        what = "an entry of the cache has vanished or changed since it was made"
        raise OutputError(
            "TD8020", what, where=str(entry), fix="let no other program change the cache"
        )
    return case


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
