"""One NIfTI file -> one Volume; everything a damaged or hostile file can do ends in a TadiffError.

The header is judged before any voxel is read: it says how many bytes follow, and no more than
those are ever inflated.
"""

import hashlib
import os

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import ReadOptions, Volume
from tadiff_rt.errors import NiftiError, ResourceError
from tadiff_rt.readers.gzipped import ByteSource, open_source
from tadiff_rt.readers.nifti_header import (
    Layout,
    check_header,
    clean_header,
    read_header,
    skip_extensions,
)

BLOCK_VOXELS = 1 << 20


def read_volume(
    path: str | os.PathLike[str],
    options: ReadOptions,
    label: str,
    *,
    notes: list[str] | None = None,
) -> Volume:
    """Reads a .nii or .nii.gz file as float32, in the file's own axis order.

    Args:
        label: what messages call the file.
        notes: what had to be assumed or relaxed is appended, one sentence a finding.

    Raises:
        NiftiError, GeometryError: codes TD31xx, TD32xx; all findings on the header at once.
        ResourceError: TD7001, the machine has too little memory for an image within
            `options.max_voxels`.
    """
    notes = [] if notes is None else notes
    try:
        with open_source(path, label) as source:
            hdr = read_header(source, label)
            layout, affine = check_header(hdr, options, label, notes)
            _note_name(source, path, label, notes)
            skip_extensions(source, hdr, layout.offset, label)
            raw = _read_voxels(source, layout, label)
        data = _to_float32(raw, layout, options, label, notes)
    except MemoryError as error:
        raise ResourceError(
            "TD7001", "not enough memory to read the image", where=label
        ) from error
    return Volume(
        data, affine, label, voxel_digest(data, affine), clean_header(hdr, layout, affine)
    )


def _note_name(
    source: ByteSource, path: str | os.PathLike[str], label: str, notes: list[str]
) -> None:
    named_gzip = os.fsdecode(path).lower().endswith(".gz")
    if named_gzip != source.is_gzip:
        kind = "gzip" if source.is_gzip else "not gzip"
        notes.append(f"W3110: {label}: the content is {kind}, unlike the name; read as it is")


def _read_voxels(source: ByteSource, layout: Layout, label: str) -> NDArray[np.uint8]:
    expected = layout.num_voxels * layout.dtype.itemsize
    raw = np.empty(expected, dtype=np.uint8)
    got = source.read_into(raw.data)
    if got < expected:
        raise NiftiError(
            "TD3103",
            f"the voxel data are cut off: {got} of {expected} bytes",
            where=label,
            fix="copy or export the file again",
        )
    source.finish()
    return raw


def _to_float32(
    raw: NDArray[np.uint8],
    layout: Layout,
    options: ReadOptions,
    label: str,
    notes: list[str],
) -> NDArray[np.float32]:
    """Scaled voxels in C order; scaling in float64, block by block to bound the memory."""
    stored = raw.view(layout.dtype)
    flat = np.empty(stored.shape, dtype=np.float32)
    num_nan = num_inf = 0
    is_rounded = False
    for at in range(0, stored.size, BLOCK_VOXELS):
        block = slice(at, at + BLOCK_VOXELS)
        # A damaged voxel may hold a signalling NaN, which numpy warns of.
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored[block].astype(np.float64)
            if layout.is_scaled:
                values = values * layout.slope + layout.inter
            flat[block] = values
        finite = np.isfinite(flat[block])
        if not finite.all():
            nan = int(np.isnan(flat[block]).sum())
            num_nan, num_inf = num_nan + nan, num_inf + int((~finite).sum()) - nan
            flat[block][~finite] = 0
        elif not (layout.is_scaled or is_rounded):
            is_rounded = bool((flat[block] != values).any())
    if num_nan or num_inf:
        handle_nonfinite(num_nan, num_inf, stored.size, options, label, notes)
    if is_rounded:
        notes.append(f"{label}: {layout.dtype.name} voxels rounded to float32")
    return np.ascontiguousarray(flat.reshape(layout.shape, order="F"))


def handle_nonfinite(
    num_nan: int, num_inf: int, total: int, options: ReadOptions, label: str, notes: list[str]
) -> None:
    """Refuses voxels that are not finite, or notes that they are set to 0."""
    counts = f"{num_nan + num_inf} non-finite voxels ({num_nan} NaN, {num_inf} Inf) of {total}"
    if options.nonfinite != "zero":
        raise NiftiError(
            "TD3107",
            f"the image has {counts}",
            where=label,
            fix="repair the image, or pass --nonfinite=zero (recorded in the report)",
        )
    notes.append(f"{label}: {counts} set to 0")


def voxel_digest(data: NDArray[np.float32], affine: NDArray[np.float64]) -> str:
    """SHA-256 of voxels and affine: what `Volume.sha256` holds."""
    digest = hashlib.sha256(data.astype("<f4", copy=False).data)
    digest.update(affine.astype("<f8").tobytes())
    return digest.hexdigest()
