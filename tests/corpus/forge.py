"""Bytes of NIfTI and gzip files with one fault each."""

import gzip
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.corpus.phantom import AFFINE, LAST, SUFFIXES, Affine, Data, Voxels, scan

NAN = struct.pack("<f", float("nan"))
BLOCK = 1 << 24


def plain(data: Data) -> bytes:
    """The FLAIR file of the last session, not compressed."""
    return gzip.decompress(data.image().read_bytes())


@cache
def good_flair() -> bytes:
    """What `plain` gives of the good data: of files that are changed again and again."""
    return nifti(scan(10 * LAST + list(SUFFIXES).index("flair")))


def nifti(voxels: Voxels, affine: Affine = AFFINE, kind: Any = nibabel.Nifti1Image) -> bytes:
    """A file as nibabel writes it, with qform and sform."""
    image = kind(voxels, affine, dtype=voxels.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image.to_bytes()


def patched(content: bytes, **fields: Any) -> bytes:
    """`content` with header fields overwritten; dim and pixdim take {index: value}."""
    hdr = nibabel.Nifti1Header(content[:348], "<", check=False)
    for name, value in fields.items():
        for index, item in value.items() if isinstance(value, dict) else [(..., value)]:
            hdr[name][index] = item
    return hdr.binaryblock + content[348:]


def raw_field(content: bytes, name: str, value: bytes) -> bytes:
    """`content` with the bytes of one header field replaced: nibabel refuses to write some."""
    at = nibabel.Nifti1Header.template_dtype.fields[name][1]
    return content[:at] + value + content[at + len(value) :]


def with_extension(content: bytes, size: int, vox_offset: int, room: int) -> bytes:
    """`content` with an extension that says it has `size` bytes, where there are `room`."""
    header = patched(content, vox_offset=vox_offset)[:348]
    extension = struct.pack("<ii", size, 6) + b"comment"
    return header + b"\1\0\0\0" + extension.ljust(room, b"\0")[:room] + content[352:]


def sheared(voxels: Voxels, shear: float) -> bytes:
    """An image with an sform alone: a qform cannot hold shear."""
    affine = AFFINE.copy()
    affine[0, 1] = shear * abs(AFFINE[1, 1])
    image = nibabel.Nifti1Image(voxels, affine)
    image.header["qform_code"] = 0
    return image.to_bytes()


def deflated(content: bytes, zeros: int) -> bytes:
    """A gzip stream of `content` and then `zeros` zero bytes, its end and checksum missing.

    A flushed block of zeros is compressed once and repeated: a bomb without the wait.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
    bomb = deflate.compress(bytes(BLOCK)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return start + bomb * (zeros // BLOCK)


def put(data: Data, content: bytes) -> None:
    """`content`, compressed, as the FLAIR file of the last session."""
    data.image().write_bytes(gzip.compress(content, 1))


def put_raw(data: Data, content: bytes) -> None:
    """`content` as it is under the name .nii.gz."""
    data.image().write_bytes(content)


def put_plain(data: Data, content: bytes) -> Path:
    """`content` under the name .nii."""
    data.image().unlink(missing_ok=True)
    path = data.image().with_name(data.image().name.removesuffix(".gz"))
    path.write_bytes(content)
    return path


def flip_bit(content: bytes, bit: int) -> bytes:
    """`content` with one bit the other way."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def random_flip(content: bytes, seed: int) -> bytes:
    """One random bit of the deflated body of a gzip file the other way."""
    # 10 bytes of gzip header; after the body 8 bytes of checksum and length.
    bits = np.random.default_rng(seed).integers(8 * 10, 8 * (len(content) - 8))
    return flip_bit(content, int(bits))


def mutated(content: bytes, seed: int) -> bytes:
    """One to four random bytes of the header replaced, often by extreme ones."""
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, 352))
        changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
    return bytes(changed)
