"""A NIfTI-1 or NIfTI-2 header, judged field by field before any voxel is read.

Parsing is nibabel's; the checks are our own, because nibabel opens one in four randomly damaged
headers as an unusable image without an error.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import nibabel
import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import ReadOptions
from tadiff_rt.errors import NiftiError, TadiffError, raise_findings
from tadiff_rt.readers.affines import read_affine
from tadiff_rt.readers.gzipped import ByteSource

T = TypeVar("T")

DATATYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
    1024: "i8", 1280: "u8",
}  # fmt: skip
"""NIfTI datatype code -> numpy type. Not 32 and 1792 (complex), 128 and 2304 (RGB), 1536."""
MAX_EXTENSION_BYTES = 1 << 26
MAX_DIM = 32767
"""Of one axis: what NIfTI-1, the format of results, can store."""
FORMATS: tuple[tuple[Any, int, int, bytes], ...] = (
    (nibabel.Nifti1Header, 348, 344, b"n+1\0"),
    (nibabel.Nifti2Header, 540, 4, b"n+2\0\r\n\x1a\n"),
)
"""nibabel's parser, size of the header, where its magic is and what it must be."""
LFS_MAGIC = b"version https://git-lfs"


@dataclass(frozen=True)
class Layout:
    """What the header says about the bytes behind it."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    slope: float
    inter: float
    offset: int
    """Of the first voxel from the start of the file."""

    @property
    def num_voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)


def read_header(source: ByteSource, label: str) -> Any:
    """The header as nibabel parses it, unchecked but for its size and magic."""
    start = source.read(348)
    if not start:
        raise NiftiError("TD3101", "the file is empty", where=label, fix="copy the file again")
    for kind, size, magic_at, magic in FORMATS:
        for endian in "<>":
            if start[:4] == struct.pack(f"{endian}i", size):
                block = start + source.read(size - len(start))
                _check_block(block, size, magic_at, magic, label)
                return kind(block, endian, check=False)
    raise _not_nifti(start, label)


def _check_block(block: bytes, size: int, magic_at: int, magic: bytes, label: str) -> None:
    if len(block) < size:
        raise NiftiError(
            "TD3102",
            f"the header is cut off: {len(block)} of {size} bytes",
            where=label,
            fix="copy or export the file again",
        )
    found = block[magic_at : magic_at + len(magic)]
    if found != magic:
        raise NiftiError(
            "TD3102",
            f"the header has magic {found!r}, expected {magic!r}",
            where=label,
            fix="convert the image to single-file NIfTI (.nii or .nii.gz)",
        )


def _not_nifti(start: bytes, label: str) -> NiftiError:
    if start.startswith(LFS_MAGIC):
        return NiftiError(
            "TD3108",
            "this is a Git LFS pointer, not the image itself",
            where=label,
            fix="run git lfs pull",
        )
    if len(start) >= 348 and start[344:348] == b"n+1\0":
        size = int.from_bytes(start[:4], "little")
        return NiftiError("TD3102", f"the header says its size is {size}, not 348", where=label)
    return NiftiError(
        "TD3109",
        f"not a NIfTI image: it starts with {start[:16]!r}",
        where=label,
        fix="give a .nii or .nii.gz file",
    )


def check_header(
    hdr: Any, options: ReadOptions, label: str, notes: list[str]
) -> tuple[Layout, NDArray[np.float64]]:
    """Where the voxels are in the file, and in the world; raises all findings together."""
    findings: list[TadiffError] = []

    def attempt(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except TadiffError as error:
            findings.append(error)
            return None

    shape = attempt(lambda: _check_dims(hdr, options, label, notes))
    dtype = attempt(lambda: _check_datatype(hdr, label))
    scaling = attempt(lambda: _check_scaling(hdr, label, notes))
    offset = attempt(lambda: _check_offset(hdr, label))
    # Without a shape qform and sform are compared over one voxel; everything else still holds.
    affine = attempt(lambda: read_affine(hdr, shape or (2, 2, 2), options, label, notes))
    raise_findings(findings)
    assert shape and dtype and scaling and offset and affine is not None  # noqa: PT018
    return Layout(shape, dtype, *scaling, offset), affine


def _check_dims(
    hdr: Any, options: ReadOptions, label: str, notes: list[str]
) -> tuple[int, int, int]:
    ndim, *dims = (int(n) for n in hdr["dim"])
    if not 1 <= ndim <= 7 or not all(1 <= n <= MAX_DIM for n in dims[:ndim]):
        shown = dims[: max(0, min(ndim, 7))]
        raise NiftiError(
            "TD3112",
            f"dim says {ndim} axes of {shown} voxels; expected 3 axes of 1 to {MAX_DIM} voxels",
            where=label,
            fix="the header is damaged; export the image again",
        )
    if ndim < 3:
        raise NiftiError("TD3113", f"the image has {ndim} axes, expected 3", where=label)
    if any(n != 1 for n in dims[3:ndim]):
        raise NiftiError(
            "TD3114",
            f"the image has shape {tuple(dims[:ndim])}, expected one 3-D volume",
            where=label,
            fix="save the volume to be used as a 3-D file",
        )
    if math.prod(dims[:3]) > options.max_voxels:
        raise NiftiError(
            "TD3111",
            f"the header declares {math.prod(dims[:3])} voxels, at most {options.max_voxels} "
            "are read",
            where=label,
            fix="pass --max-voxels=N if the image really is that large",
        )
    if ndim > 3:
        notes.append(f"{label}: {ndim}-D image holding one volume; extra axes dropped")
    return dims[0], dims[1], dims[2]


def _check_datatype(hdr: Any, label: str) -> np.dtype[Any]:
    code, bitpix = int(hdr["datatype"]), int(hdr["bitpix"])
    if code not in DATATYPES:
        raise NiftiError(
            "TD3115",
            f"datatype {code} is not a real number type (one of {sorted(DATATYPES)})",
            where=label,
            fix="export the image as int16 or float32",
        )
    dtype = np.dtype(DATATYPES[code]).newbyteorder(hdr.endianness)
    if bitpix != 8 * dtype.itemsize:
        raise NiftiError(
            "TD3115",
            f"bitpix is {bitpix}, datatype {code} has {8 * dtype.itemsize} bits",
            where=label,
            fix="the header is damaged; export the image again",
        )
    return dtype


def _check_scaling(hdr: Any, label: str, notes: list[str]) -> tuple[float, float]:
    slope, inter = float(hdr["scl_slope"]), float(hdr["scl_inter"])
    if slope == 0:  # the standard: no scaling is stored
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise NiftiError(
            "TD3116",
            f"scl_slope is {slope:g} and scl_inter {inter:g}; both must be finite",
            where=label,
            fix="set scl_slope to 0 if the voxels are stored unscaled",
        )
    if slope < 0:
        notes.append(f"W3117: {label}: scl_slope is {slope:g}: the contrast is stored inverted")
    return slope, inter


def _check_offset(hdr: Any, label: str) -> int:
    offset, lowest = float(hdr["vox_offset"]), len(hdr.binaryblock) + 4
    if not (lowest <= offset <= MAX_EXTENSION_BYTES and offset == int(offset)):
        raise NiftiError(
            "TD3118",
            f"vox_offset is {offset:g}, expected a whole number from {lowest} to "
            f"{MAX_EXTENSION_BYTES}",
            where=label,
            fix="the header is damaged; export the image again",
        )
    return int(offset)


def skip_extensions(source: ByteSource, hdr: Any, offset: int, label: str) -> None:
    """Walks the extensions, so that a wrong length is found before it shifts the voxels."""
    start = len(hdr.binaryblock)
    block = source.read(offset - start)
    if len(block) < offset - start:
        raise NiftiError(
            "TD3118",
            f"vox_offset is {offset}, but the file ends after {start + len(block)} bytes",
            where=label,
            fix="the file is cut off or its header damaged; copy it again",
        )
    if block[0] == 0:
        return
    at = 4
    while at < len(block) and any(block[at : at + 8]):
        (size,) = struct.unpack_from(f"{hdr.endianness}i", block.ljust(at + 4, b"\0"), at)
        if size < 16 or size % 16 or at + size > len(block):
            raise _bad_extension(f"one of {size} bytes at byte {start + at}", offset, label)
        at += size
    if at == 4:
        raise _bad_extension("but leaves no room for one", offset, label)


def _bad_extension(what: str, offset: int, label: str) -> NiftiError:
    return NiftiError(
        "TD3119",
        f"the header announces an extension, {what}; voxels start at byte {offset}",
        where=label,
        fix="the header is damaged; export the image again, without extensions",
    )


def clean_header(hdr: Any, layout: Layout, affine: NDArray[np.float64]) -> Any:
    """A new header on the same grid; free-text fields, which may name the patient, stay behind."""
    clean = nibabel.Nifti1Header()
    clean.set_data_dtype(np.float32)
    clean.set_data_shape(layout.shape)
    clean.set_xyzt_units("mm")
    codes = int(hdr["qform_code"]), int(hdr["sform_code"])
    qform_code, sform_code = codes if any(codes) else (1, 1)
    clean.set_qform(affine, qform_code)
    clean.set_sform(affine, sform_code)
    return clean
