"""The one writer of every output: volumes, JSON, and result folders that are complete or absent.

A result is a folder built under a temporary name next to its final one and renamed when its
manifest, written last, is in it. Replacing an earlier result takes two renames, because no
portable call swaps two folders:

    1. NAME                 -> .NAME.tadiff-old-PID-...    the earlier result steps aside
    2. .NAME.tadiff-tmp-... -> NAME                        the new one takes its place
    3. .NAME.tadiff-old-... is removed

After a crash between 1 and 2 the earlier result is whole under its aside name, and
`clean_leftovers`, which every new result in that folder calls, gives it its name back; after 2
the new one is whole.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tadiff_rt.atomic import (
    MAX_NAME,
    atomic_file,
    clean_leftovers,
    discard,
    output_error,
    remove_temporary,
    sync_folder,
    temporary_path,
)
from tadiff_rt.errors import GeometryError, NumericsError, OutputError, ResourceError

__all__ = [
    "MANIFEST",
    "ResultFolder",
    "atomic_file",
    "clean_leftovers",
    "nifti_bytes",
    "write_bytes",
    "write_json",
    "write_nifti",
]

MANIFEST = "manifest.json"
"""Written last into a result: a folder without it is not a result."""

DESCRIPTION = "tadiff predicted, not acquired, research use"
GZIP_LEVEL = 1
"""Fixed, for equal bytes; 6 takes half as long again and saves 3 % on float images."""


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, replacing any file there; checked by reading it back."""

    def verify(file: BinaryIO) -> None:
        if file.read() != data:
            raise OutputError(
                "TD8008", "the disk does not return what was written", where=str(path)
            )

    with atomic_file(path, verify=verify, needed_bytes=len(data)) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys in ASCII: equal values give equal bytes.

    Raises:
        NumericsError: TD6001, a number is NaN or infinite, which JSON cannot hold.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False)
    except ValueError as error:
        raise NumericsError(
            "TD6001", f"a number is not finite: {error}", where=path.name
        ) from None
    write_bytes(path, (text + "\n").encode("ascii"))


def nifti_bytes(
    data: NDArray[Any],
    affine: NDArray[np.float64],
    header: Any = None,
    dtype: DTypeLike = np.float32,
) -> bytes:
    """A NIfTI-1 .nii.gz file of a 3-D volume; equal arguments give equal bytes.

    Args:
        data: finite; for an integer `dtype`, whole numbers that it can hold.
        affine: voxel index -> RAS+ mm; goes into qform and sform.
        header: NIfTI header of the input the volume lies on; its orientation codes are kept and
            nothing else of it, since free-text fields may identify the patient.
        dtype: of the voxels in the file.

    Raises:
        NumericsError: TD6001, a voxel is not finite.
        GeometryError: TD3203, the affine is sheared.
    """
    import nibabel as nib

    # Before the cast, where NaN would become an integer, and after it, where 1e39 overflows.
    finite = bool(np.isfinite(data).all())
    if finite:
        with np.errstate(over="ignore", invalid="ignore"):
            voxels = np.asarray(data).astype(dtype)
        finite = bool(np.isfinite(voxels).all())
    if not finite:
        raise NumericsError("TD6001", "a result has voxels that are not finite")
    if voxels.dtype.kind in "iu" and not np.array_equal(voxels, data):
        raise ValueError(f"the data are not whole numbers that fit {voxels.dtype}")
    affine = _without_shear(affine)
    image = nib.Nifti1Image(voxels, affine)
    for form in ("qform", "sform"):
        code = max(1, int(header[f"{form}_code"])) if header is not None else 1
        getattr(image, f"set_{form}")(affine, code)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = DESCRIPTION
    buffer = io.BytesIO()
    # No time and no file name in the gzip header: bytes depend on the content alone.
    with gzip.GzipFile("", "wb", GZIP_LEVEL, buffer, mtime=0) as file:
        file.write(image.to_bytes())
    return buffer.getvalue()


def _without_shear(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine with exactly perpendicular axes, which ITK insists on.

    Axes that are perpendicular to float32 rounding stay as they are, bit by bit.
    """
    affine = np.asarray(affine, dtype=np.float64)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing_mm
    u, _, vt = np.linalg.svd(axes)
    nearest = u @ vt
    error = np.abs(axes - nearest).max()
    if not error <= 1e-3:
        what = f"the axes of the output grid are not perpendicular (by {error:.2g})"
        raise GeometryError("TD3203", what)
    if error <= 1e-6:
        return affine
    result = affine.copy()
    result[:3, :3] = nearest * spacing_mm
    return result


def write_nifti(
    path: Path,
    data: NDArray[Any],
    affine: NDArray[np.float64],
    header: Any = None,
    dtype: DTypeLike = np.float32,
) -> None:
    """Writes a volume as .nii.gz; see `nifti_bytes`."""
    write_bytes(path, nifti_bytes(data, affine, header, dtype))


class ResultFolder:
    """A folder that appears under its name complete, with its manifest, or not at all.

        with ResultFolder(out, overwrite=False, inputs=[case_folder]) as result:
            write_nifti(result.path / "mean.nii.gz", ...)
            result.complete({"files": result.files(), ...})

    Leaving the block by an exception, or without `complete`, removes everything written. The
    target is checked when the block is entered, before anything is computed.

    Args:
        out: where the result goes; its parent folder must exist.
        overwrite: an earlier result there is replaced, as soon as the new one is complete.
        inputs: folders and files that the result must not lie in or hold.
        manifest: name of the manifest, which is JSON.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
        manifest: str = MANIFEST,
    ) -> None:
        self.target = _checked_target(Path(out), [Path(path) for path in inputs])
        self.overwrite = overwrite
        self.manifest = manifest
        self.path = temporary_path(self.target, "tmp")
        """Where the files are written meanwhile."""
        self._done = False

    def __enter__(self) -> "ResultFolder":
        try:
            clean_leftovers(self.target.parent)
            self._check_replaceable()
            os.mkdir(self.path)
        except OSError as error:
            raise output_error(error, self.target) from error
        except BaseException:  # a signal during mkdir is raised after it, and before the block
            remove_temporary(self.path)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._done:
            remove_temporary(self.path)
            if kind is None:
                raise RuntimeError("the result was not completed")

    def check(self) -> None:
        """Whether a result could be put there now; writes nothing.

        Raises:
            OutputError: it could not.
        """
        try:
            self._check_replaceable()
        except OSError as error:
            raise output_error(error, self.target) from error

    def require_space(self, expected_bytes: int) -> None:
        """Refuses a result that does not fit, before it is computed.

        Raises:
            ResourceError: TD7002, so much and a fifth more is not free.
        """
        needed = expected_bytes * 6 // 5
        try:
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise output_error(error, self.target) from error
        if free < needed:
            what = f"the result needs about {needed} bytes, {free} are free"
            fix = "free some space, or write elsewhere"
            raise ResourceError("TD7002", what, where=str(self.target), fix=fix)

    def subfolder(self, name: str) -> Path:
        """A folder inside the result, made with its parents if it is not there.

        But for that of the result: if someone has removed it, files that were in it are lost.
        """
        path = self.path / name
        inside = [folder for folder in (path, *path.parents) if self.path in folder.parents]
        try:
            for folder in reversed(inside):
                if not folder.is_dir():
                    folder.mkdir()
                    sync_folder(folder.parent)  # what is in it survives a power cut only then
        except OSError as error:
            raise output_error(error, self.target / name) from error
        return path

    def files(self) -> dict[str, dict[str, str | int]]:
        """Size and SHA-256 of every file written so far, for the manifest."""
        entries: dict[str, dict[str, str | int]] = {}
        for name in _file_names(self.path):
            try:
                with open(self.path / name, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    entries[name] = {"bytes": file.tell(), "sha256": digest}
            except OSError as error:
                raise output_error(error, self.target / name) from error
        return entries

    def complete(self, manifest: Mapping[str, Any]) -> Path:
        """Writes the manifest and gives the folder its name; returns that.

        Args:
            manifest: names every other file somewhere in its keys or values, so that a later
                run with `overwrite` recognises the folder as a result and nothing else.
        """
        unnamed = set(_file_names(self.path)) - _strings(manifest)
        if unnamed:
            raise RuntimeError(f"the manifest does not name {sorted(unnamed)}")
        write_json(self.path / self.manifest, manifest)
        try:
            self._move_into_place()
        except OSError as error:
            raise output_error(error, self.target) from error
        return self.target

    def _move_into_place(self) -> None:
        self._check_replaceable()
        aside = temporary_path(self.target, "old")
        try:
            if self.overwrite and self.target.is_dir() and any(self.target.iterdir()):
                os.rename(self.target, aside)
            os.rename(self.path, self.target)
            sync_folder(self.target.parent)
        finally:  # a signal during a rename is raised after it: only the names say what was done
            self._done = not self.path.exists()
            if aside.exists() and self._done:
                discard(aside, self.target)
            elif aside.exists():
                with suppress(OSError):
                    os.rename(aside, self.target)

    def _check_replaceable(self) -> None:
        target = self.target
        if not target.exists():
            return
        if not target.is_dir():
            raise OutputError("TD8004", "exists and is not a folder", where=str(target))
        if os.path.ismount(target):
            what = "is a mount point, which cannot be renamed"
            fix = f"choose a folder in it, e.g. {target / 'forecast'}"
            raise OutputError("TD8005", what, where=str(target), fix=fix)
        if not any(target.iterdir()):
            return
        if not self.overwrite:
            fix = "choose another folder, or pass --overwrite"
            raise OutputError("TD8001", "exists and is not empty", where=str(target), fix=fix)
        foreign = _foreign_files(target, self.manifest)
        if foreign:
            what = f"is not only an earlier result: it holds {', '.join(foreign[:5])}"
            fix = "move these files away, or choose another folder"
            raise OutputError("TD8001", what, where=str(target), fix=fix)


def _checked_target(out: Path, inputs: Sequence[Path]) -> Path:
    """`out` with symbolic links resolved, if a result may be put there."""
    fix = "choose a new folder, e.g. -o forecast/"
    if str(out) == "-":
        what = "a result is a folder; it cannot go to standard output"
        raise OutputError("TD8006", what, where="-", fix=fix)
    try:
        target = Path(os.path.realpath(out))
        here = Path.cwd()
        parent_is_folder = target.parent.is_dir()
    except OSError as error:
        raise output_error(error, out) from error
    except ValueError as error:
        raise OutputError("TD8006", f"is not a usable name: {error}", where=repr(out)) from None
    if target == here or target in here.parents:
        what = "is the current folder or holds it"
        raise OutputError("TD8005", what, where=str(out), fix=fix)
    for source in (Path(os.path.realpath(path)) for path in inputs):
        if target == source or source in target.parents or target in source.parents:
            what = f"lies in the input {source.name} or holds it"
            raise OutputError("TD8005", what, where=str(out), fix=fix)
    if len(os.fsencode(target.name)) > MAX_NAME:
        what = f"the name has more than {MAX_NAME} bytes"
        raise OutputError("TD8006", what, where=str(out), fix=fix)
    if not parent_is_folder:
        what = f"the folder {target.parent} does not exist"
        raise OutputError("TD8003", what, where=str(out), fix="create it first")
    return target


def _file_names(folder: Path) -> list[str]:
    """Relative paths, with /, of everything in `folder` that is not a real folder."""
    names = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        names += [Path(root, name).relative_to(folder).as_posix() for name in files + links]
    return sorted(names)


def _strings(value: Any) -> set[str]:
    """Every string among the keys and values of JSON-like data."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        return set().union(*(_strings(part) for item in value.items() for part in item))
    if isinstance(value, list | tuple):
        return set().union(*(_strings(part) for part in value))
    return set()


def _foreign_files(folder: Path, manifest: str) -> list[str]:
    """Files that the manifest of `folder` does not name: overwriting must not delete them."""
    try:
        named = _strings(json.loads((folder / manifest).read_bytes()))
    except (OSError, ValueError, RecursionError):
        named = set()
    else:
        named.add(manifest)
    return [name for name in _file_names(folder) if name not in named]
