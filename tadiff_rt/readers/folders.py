"""Folders of cases: which subject is meant, and in which layout it lies.

A layout is recognised by what only it has. A folder that bears the marks of two is not guessed at.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tadiff_rt.case import MODALITIES
from tadiff_rt.errors import TableError, UsageError
from tadiff_rt.readers.manifest import ImageFile

NPY_IMAGE = "_image.npy"
SAILOR_INTERVALS = "intervals-days.txt"
SAILOR_NAMES = {"t1": "T1", "t1c": "T1c", "flair": "Flair"}
SESSION = re.compile(r"ses-([0-9]{1,4})", re.ASCII)
WEEK = re.compile(r"week-([0-9]{1,4})(?:-([0-9]{1,2}))?", re.ASCII)
"""Week of a LUMIERE session, and its number where a week has several."""

_SUBJECT = re.compile(r"(sub|Patient)-.+", re.ASCII)


def entries(folder: Path) -> list[str]:
    """Names in a folder, sorted: results do not depend on the order a disk lists them in."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        what = f"cannot be listed: {error.strerror}"
        raise TableError("TD3123", what, where=folder.name) from None


def some(names: Sequence[str], limit: int = 10) -> str:
    """`names` as messages list them, cut after `limit`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def files_named(folder: Path, stem: str, label: str) -> list[ImageFile]:
    """STEM.nii and STEM.nii.gz in a folder, in any case of the letters."""
    wanted = (f"{stem}.nii".lower(), f"{stem}.nii.gz".lower())
    names = [name for name in entries(folder) if name.lower() in wanted]
    return [ImageFile(folder / name, f"{label}/{name}") for name in names]


def npy_image(path: Path) -> Path:
    """The one file ..._image.npy of a folder; `path` itself if it is none.

    Raises:
        UsageError: TD3002, the folder holds several cases.
        TableError: TD3122 it holds none, TD3123 it cannot be listed.
    """
    if not os.path.isdir(path):
        return path
    images = [name for name in entries(path) if name.endswith(NPY_IMAGE)]
    if not images:
        what = f"the folder holds no array NAME{NPY_IMAGE}"
        raise TableError("TD3122", what, where=path.name)
    if len(images) > 1:
        what = f"the folder holds {len(images)} cases: {some(images)}"
        raise UsageError("TD3002", what, where=path.name, fix=f"name one, e.g. {images[0]}")
    return path / images[0]


def recognise(path: Path, wanted: str) -> tuple[str, Path]:
    """The layout of a case and the folder of its subject.

    Args:
        path: that folder, or a data set of one subject.
        wanted: a layout, or "auto" for the one whose marks the folder bears; "bids" where it
            bears none.

    Raises:
        UsageError: TD3002 several subjects, TD3006 several layouts.
        TableError: TD3123, a folder cannot be listed.
    """
    path = _with_name(path)
    marks = marks_of(path)
    subjects = [] if _SUBJECT.fullmatch(path.name) else _subjects(path)
    if subjects and marks and wanted == "auto":
        what = f"the folder is a {marks[0]} case and holds the subjects {some(subjects)}"
        fix = f"pass --layout={marks[0]}, or name a subject, e.g. {path.name}/{subjects[0]}"
        raise UsageError("TD3006", what, where=path.name, fix=fix)
    if subjects and not marks:
        if len(subjects) > 1:
            what = f"the dataset has {len(subjects)} subjects: {some(subjects)}"
            fix = f"name one of them, e.g. {path.name}/{subjects[0]}"
            raise UsageError("TD3002", what, where=path.name, fix=fix)
        path = path / subjects[0]
        marks = marks_of(path)
    if wanted != "auto":
        return wanted, path
    if len(marks) > 1:
        what = f"the folder could be read as {' or '.join(marks)}"
        fix = f"pass --layout={marks[0]} or --layout={marks[1]}"
        raise UsageError("TD3006", what, where=path.name, fix=fix)
    return (marks[0] if marks else "bids"), path


def _with_name(path: Path) -> Path:
    """`path` from the root on, ending in the name of its folder; a symbolic link keeps its own."""
    # A ".." before the end is left to the system: after a link, text does not say where it leads.
    path = path.absolute()
    return path.resolve() if path.name == ".." else path


def _subjects(folder: Path) -> list[str]:
    names = [name for name in entries(folder) if _SUBJECT.fullmatch(name)]
    return [name for name in names if os.path.isdir(folder / name)]


def marks_of(folder: Path) -> list[str]:
    """The layouts that the folder of a subject bears marks of."""
    names = entries(folder)
    sessions = [name for name in names if SESSION.fullmatch(name)]
    bids = f"{folder.name}_sessions.tsv" in names or any(
        os.path.isdir(folder / name / "anat") for name in names if name.startswith("ses-")
    )
    sailor = SAILOR_INTERVALS in names or any(
        files_named(folder / session, SAILOR_NAMES[modality], session)
        for session in sessions
        for modality in MODALITIES
    )
    marks = {
        "bids": bids,
        "sailor": sailor,
        "lumiere": any(WEEK.fullmatch(name) for name in names),
        "npy": any(name.endswith(NPY_IMAGE) for name in names),
    }
    return [layout for layout, found in marks.items() if found]
