"""Readers: from a path to a `Case`, with every problem of the input reported at once."""

import os
import stat
from pathlib import Path

from tadiff_rt.case import Case, ReadOptions
from tadiff_rt.errors import TableError, UsageError
from tadiff_rt.readers.tables import quoted

CHOICES = {"nonfinite": ("refuse", "zero"), "affine": ("agree", "sform", "qform")}
"""Values of the options that are words."""


def read_case(
    path: str | os.PathLike[str],
    options: ReadOptions | None = None,
    *,
    last: int | None = None,
) -> Case:
    """The case at `path`: a BIDS subject folder (or a dataset of one subject), or a manifest.csv.

    Args:
        path: folder or .csv file.
        options: relaxations asked for; none by default.
        last: read the images of only so many sessions, counted from the end. A forecast needs
            three; the table of a patient with twenty sessions is still checked whole, and the
            earlier sessions are in the case without images.

    Raises:
        TadiffError: TD3005 for an unknown option; TD3122 or TD3123 where the path cannot be read;
            otherwise the first problem found, carrying all the others.
    """
    if last is not None and last < 1:
        raise UsageError("TD3004", f"last must be at least 1, got {last}")
    options = options or ReadOptions()
    _check_choices(options)
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise TableError("TD3123", "no permission to read it", where=str(path)) from None
    except (OSError, ValueError):
        raise TableError("TD3122", "there is no such file or folder", where=str(path)) from None
    if stat.S_ISDIR(mode):
        from tadiff_rt.readers.bids import read_bids_case

        return read_bids_case(path, options, last=last)
    if not stat.S_ISREG(mode):
        raise TableError("TD3121", "is neither a folder nor a regular file", where=str(path))
    if path.suffix.lower() == ".csv":
        from tadiff_rt.readers.manifest import read_manifest_case

        return read_manifest_case(path, options, last=last)
    fix = "give a BIDS subject folder sub-XX, or a manifest.csv"
    raise UsageError("TD3003", "the file is not a case", where=str(path), fix=fix)


def _check_choices(options: ReadOptions) -> None:
    for name, known in CHOICES.items():
        value = getattr(options, name)
        if value not in known:
            what = f"--{name} {quoted(str(value))} is unknown; known are {', '.join(known)}"
            raise UsageError("TD3005", what, where=f"--{name}")
