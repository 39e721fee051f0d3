"""Cohorts: the subjects below a folder, in whatever layout they lie, and what is wrong with them.

    ROOT/sub-*/                       BIDS, or SAILOR (ses-*/T1.nii.gz); told apart by their files
    ROOT/[Imaging/]Patient-*/week-*/  LUMIERE
    ROOT/NAME_image.npy ...           published arrays
    ROOT/manifest.csv                 loose files, of one case or of several

A single subject is a cohort of one. All subjects of a cohort have one layout: two are as a rule a
mistake, and names of one layout say nothing of names of another.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tadiff_rt.case import Case, ReadOptions
from tadiff_rt.errors import InputDataError, TableError, TadiffError, UsageError
from tadiff_rt.readers import read_case
from tadiff_rt.readers.folders import NPY_IMAGE, entries, marks_of, some
from tadiff_rt.readers.tables import quoted
from tadiff_train.data import manifest

SUBJECT_PREFIXES = ("sub-", "Patient-")
LUMIERE_FOLDER = "Imaging"
LAYOUTS = (
    "sub-*/ (BIDS, SAILOR), Patient-*/ or Imaging/Patient-*/ (LUMIERE), "
    f"NAME{NPY_IMAGE} (published arrays) or {manifest.NAME}"
)
OF_THE_REQUEST = ("TD3005", "TD3007")
"""Codes of options that are wrong for every subject."""


@dataclass(frozen=True)
class Subject:
    """One subject of a cohort, found but not read."""

    name: str
    path: Path
    """Its folder, its ..._image.npy, or the table that lists it."""
    layout: str
    """"bids", "sailor", "lumiere", "npy" or "manifest"; "auto" where its folder bears the marks of
    two, which the reader refuses."""
    is_one_of_several: bool = False
    """The table lists other cases, too."""


def find_subjects(
    root: str | os.PathLike[str], options: ReadOptions | None = None
) -> list[Subject]:
    """The subjects of a cohort, in order of name (of a table: in its order); none is read.

    Args:
        root: a data set, or a single subject, in a layout as above.
        options: `layout` says which is meant where several could be; `leave_out` is checked.

    Raises:
        UsageError: TD3030 no subject, TD3006 several layouts, TD3005 an unknown session.
        TableError: a table or a folder cannot be read.
    """
    options = options or ReadOptions()
    path = Path(root).absolute()
    path = path.resolve() if path.name == ".." else path
    found = _in_folder(path, options) if os.path.isdir(path) else _in_file(path)
    if not found:
        what = f"holds no {LAYOUTS}" if os.path.exists(path) else "there is no such file or folder"
        fix = f"give a folder with {LAYOUTS}; `tadiff-train phantom` makes one"
        if below := _cohorts_below(path):
            fix = (
                f"give one of its folders: {some([os.path.join(root, name) for name in below], 3)}"
            )
        raise UsageError("TD3030", f"no subject found in {root}: {what}", fix=fix)
    _require_known_sessions(found, options)
    return found


def subjects(root: Path) -> list[Path]:
    """What `read_case` takes for each subject of a cohort, in order of name.

    Raises:
        UsageError: as `find_subjects`.
    """
    return [subject.path for subject in find_subjects(root)]


def read_subject(subject: Subject, options: ReadOptions | None = None) -> Case:
    """The case of a subject.

    Args:
        options: for the whole cohort: a session to leave out need not be one of this subject, and
            `SUBJECT/SESSION` is one of that subject alone.

    Raises:
        TadiffError: as `tadiff_rt.readers.read_case`.
    """
    options = options_of(subject, options or ReadOptions())
    if subject.is_one_of_several:
        return manifest.read_case_in(subject.path, subject.name, options)
    if subject.layout not in ("auto", "manifest"):
        options = dataclasses.replace(options, layout=subject.layout)
    return read_case(subject.path, options)


def options_of(subject: Subject, options: ReadOptions) -> ReadOptions:
    """Options of a cohort as they concern one subject: with the sessions it is to leave out."""
    if subject.is_one_of_several:
        return options
    leave_out = tuple(name.rpartition("/")[2] for name in _left_out(subject, options))
    return dataclasses.replace(options, leave_out=leave_out)


def findings_of(subject: Subject, error: TadiffError) -> tuple[TadiffError, ...]:
    """What is wrong with a subject, its name in each finding.

    Raises:
        TadiffError: `error`, where it is not about the subject: memory or disk ran out, or an
            option is wrong.
    """
    if not isinstance(error, (InputDataError, UsageError)) or error.code in OF_THE_REQUEST:
        raise error
    for finding in error.findings:
        if subject.name not in finding.where + finding.message:
            finding.where = f"{subject.name}: {finding.where}" if finding.where else subject.name
    return error.findings


def _in_file(path: Path) -> list[Subject]:
    if path.name.endswith(NPY_IMAGE):
        return [_array(path)]
    if path.suffix.lower() == ".csv" and os.path.exists(path):
        return _in_table(path)
    return []


def _array(path: Path) -> Subject:
    return Subject(path.name.removesuffix(NPY_IMAGE), path, "npy")


def _in_table(path: Path) -> list[Subject]:
    several = manifest.cases_in(path)
    if several:
        return [Subject(name, path, "manifest", True) for name in several]
    return [Subject(path.stem, path, "manifest")]


def _in_folder(root: Path, options: ReadOptions) -> list[Subject]:
    folders = _subject_folders(root)
    if not folders and _subject_folders(root / LUMIERE_FOLDER):
        folders = _subject_folders(root / LUMIERE_FOLDER)
    arrays = _arrays(root)
    table = root / manifest.NAME
    kinds = {
        "subject folders": folders if options.layout != "npy" or not arrays else [],
        "npy arrays": arrays if options.layout in ("auto", "npy") else [],
        "a manifest.csv": [table] if os.path.lexists(table) and options.layout == "auto" else [],
    }
    present = [kind for kind, paths in kinds.items() if paths]
    if len(present) > 1:
        what = f"{root.name} holds {' and '.join(present)}: which are the cohort is not clear"
        fix = f"pass --layout (bids, sailor, lumiere or npy), or name {manifest.NAME} itself"
        raise UsageError("TD3006", what, where=str(root), fix=fix)
    if kinds["npy arrays"]:
        return [_array(path) for path in arrays]
    if kinds["a manifest.csv"]:
        return _in_table(table)
    if not folders and marks_of(root):
        folders = [root]
    return _with_layouts(folders, options.layout)


def _arrays(root: Path) -> list[Path]:
    """Without ._NAME_image.npy, which macOS leaves beside files on the disks of others."""
    names = [name for name in entries(root) if name.endswith(NPY_IMAGE)]
    return [root / name for name in names if not name.startswith(".")]


def _cohorts_below(root: Path) -> list[str]:
    """Folders that hold subjects, in one that holds none: what an archive unpacks into."""
    return [
        name
        for name in entries(root)
        if not name.startswith((".", "__"))
        and os.access(root / name, os.R_OK)
        and (_subject_folders(root / name) or _arrays(root / name))
    ]


def _subject_folders(root: Path) -> list[Path]:
    """Folders of subjects; a link that leads nowhere is one, so that it is not passed over."""
    paths = [root / name for name in entries(root) if name.startswith(SUBJECT_PREFIXES)]
    return [
        path
        for path in paths
        if os.path.isdir(path) or (os.path.islink(path) and not os.path.exists(path))
    ]


def _with_layouts(folders: Sequence[Path], wanted: str) -> list[Subject]:
    if wanted != "auto":
        return [Subject(path.name, path, wanted) for path in folders]
    marks = {path: _marks(path) for path in folders}
    by_layout: dict[str, list[str]] = {}
    for path, found in marks.items():
        if len(found) == 1:
            by_layout.setdefault(found[0], []).append(path.name)
    if len(by_layout) > 1:
        each = "; ".join(f"{layout}: {some(names, 3)}" for layout, names in by_layout.items())
        what = f"the subjects have {len(by_layout)} layouts ({each})"
        fix = "put each layout into a folder of its own, or pass --layout"
        raise UsageError("TD3006", what, fix=fix)
    # A folder without marks is empty or damaged; as one of the others, its reader says what lacks.
    default = next(iter(by_layout), "")
    return [
        Subject(
            path.name, path, "auto" if len(found) > 1 else (*found, default or _guess(path))[0]
        )
        for path, found in marks.items()
    ]


def _marks(folder: Path) -> list[str]:
    """Marks of one subject; none where its folder cannot be listed, which its reader will say."""
    try:
        return marks_of(folder)
    except TableError:
        return []


def _guess(folder: Path) -> str:
    return "lumiere" if folder.name.startswith("Patient-") else "bids"


def _left_out(subject: Subject, options: ReadOptions) -> list[str]:
    """Of the sessions to leave out, those of this subject, as they were named."""
    named = []
    for name in options.leave_out:
        owner, _, session = name.rpartition("/")
        if owner in ("", subject.name) and os.path.isdir(subject.path / session):
            named.append(name)
    return named


def _require_known_sessions(found: Sequence[Subject], options: ReadOptions) -> None:
    known = {name for subject in found for name in _left_out(subject, options)}
    unknown = [name for name in options.leave_out if name not in known]
    if unknown:
        names = ", ".join(map(quoted, unknown))
        what = f"--leave-out names {names}; no subject has such a session"
        raise UsageError("TD3005", what, fix="name it SESSION, or SUBJECT/SESSION")
