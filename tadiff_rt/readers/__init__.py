"""Readers: from a path to a `Case`, with every problem of the input reported at once."""

import os
import stat
from pathlib import Path

from tadiff_rt.case import Case, ReadOptions
from tadiff_rt.errors import TableError, UsageError, raise_findings
from tadiff_rt.labels import convention_named
from tadiff_rt.readers.tables import quoted

CHOICES = {
    "nonfinite": ("refuse", "zero"),
    "affine": ("agree", "sform", "qform"),
    "layout": ("auto", "bids", "sailor", "lumiere", "npy"),
    "treatments": ("table", "published"),
    "lumiere_images": ("auto", "raw", "registered", "atlas"),
}
"""Values of the options that are words."""

MEANT_FOR = {
    "treatments": ("sailor",),
    "skip_incomplete": ("sailor", "lumiere"),
    "leave_out": ("sailor", "lumiere"),
    "lumiere_images": ("lumiere",),
    "npy_grid": ("npy",),
}
"""Layouts that an option is for; elsewhere it would be ignored, so it is refused."""


def read_case(
    path: str | os.PathLike[str],
    options: ReadOptions | None = None,
    *,
    last: int | None = None,
) -> Case:
    """The case at `path`: the folder of one subject, a manifest.csv or a published array.

    A folder may be laid out as BIDS, SAILOR (`readers.sailor`), LUMIERE (`readers.lumiere`) or
    published .npy arrays (`readers.npy`); it may also be a data set of one such subject.

    Args:
        path: folder, .csv file or ..._image.npy.
        options: relaxations asked for; none by default.
        last: read the images of only so many sessions, counted from the end. A forecast needs
            three; the table of a patient with twenty sessions is still checked whole, and the
            earlier sessions are in the case without images.

    Raises:
        TadiffError: TD3005 for an unknown option, TD3007 for one that is meant for another
            layout or contradicts it; TD3006 where the layout is not clear; TD3122 or TD3123 where
            the path cannot be read; otherwise the first problem found, carrying all the others.
    """
    if last is not None and last < 1:
        raise UsageError("TD3004", f"last must be at least 1, got {last}")
    options = options or ReadOptions()
    _check_choices(options)
    convention_named(options.labels)
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise TableError("TD3123", "no permission to read it", where=str(path)) from None
    except (OSError, ValueError):
        raise TableError("TD3122", "there is no such file or folder", where=str(path)) from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise TableError("TD3121", "is neither a folder nor a regular file", where=str(path))
    layout, path = _layout(path, stat.S_ISDIR(mode), options)
    _check_meant(layout, options)
    return _read(layout, path, options, last)


def _layout(path: Path, is_folder: bool, options: ReadOptions) -> tuple[str, Path]:
    from tadiff_rt.readers.folders import NPY_IMAGE, recognise

    if is_folder:
        return recognise(path, options.layout)
    if path.name.endswith(NPY_IMAGE):
        return "npy", path
    if path.suffix.lower() == ".csv":
        return "manifest", path
    fix = (
        "give the folder of a subject (BIDS, SAILOR or LUMIERE), a manifest.csv, or an array "
        f"NAME{NPY_IMAGE}"
    )
    raise UsageError("TD3003", "the file is not a case", where=str(path), fix=fix)


def _read(layout: str, path: Path, options: ReadOptions, last: int | None) -> Case:
    # Imported here: most runs need one of them.
    if layout == "sailor":
        from tadiff_rt.readers.sailor import read_sailor_case as read
    elif layout == "lumiere":
        from tadiff_rt.readers.lumiere import read_lumiere_case as read
    elif layout == "npy":
        from tadiff_rt.readers.npy import read_npy_case as read
    elif layout == "manifest":
        from tadiff_rt.readers.manifest import read_manifest_case as read
    else:
        from tadiff_rt.readers.bids import read_bids_case as read
    return read(path, options, last=last)


def _check_choices(options: ReadOptions) -> None:
    for name, known in CHOICES.items():
        value = getattr(options, name)
        if value not in known:
            flag = _flag(name)
            what = f"{flag} {quoted(str(value))} is unknown; known are {', '.join(known)}"
            raise UsageError("TD3005", what, where=flag)


def _check_meant(layout: str, options: ReadOptions) -> None:
    default = ReadOptions()
    names = [
        name
        for name, layouts in MEANT_FOR.items()
        if layout not in layouts and getattr(options, name) != getattr(default, name)
    ]
    wrong = [(name, f"for {' and '.join(MEANT_FOR[name])} cases") for name in names]
    if options.layout not in ("auto", layout):
        wrong.append(("layout", f"{options.layout}, but the file is no such folder"))
    raise_findings(
        [
            UsageError("TD3007", f"{_flag(name)} is {what}; this is a {layout} case")
            for name, what in wrong
        ]
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
