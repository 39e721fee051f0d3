"""Reading one NIfTI file: nibabel is the oracle for good files, a table of faults for bad ones.

The ids N01 to N38, G06 to G19 and V01 to V03 number the faults of the project's corpus.
"""

import gzip
import os
import socket
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tadiff_rt.case import ReadOptions, Volume
from tadiff_rt.errors import (
    GeometryError,
    InputDataError,
    NiftiError,
    ResourceError,
    TadiffError,
    describe,
)
from tadiff_rt.readers.gzipped import ByteSource
from tadiff_rt.readers.nifti import read_volume

SHAPE = (12, 10, 9)
AFFINE = np.array([[-1.0, 0, 0, 30], [0, 1.1, 0, -20], [0, 0, 0.9, -10], [0, 0, 0, 1]])
TURN = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
VOXELS = np.random.default_rng(0).integers(0, 1000, SHAPE)


def nifti(
    voxels: np.ndarray = VOXELS,
    dtype: type = np.int16,
    affine: np.ndarray = AFFINE,
    kind: type = nibabel.Nifti1Image,
) -> bytes:
    """A good file as nibabel writes it, with qform and sform."""
    image = kind(voxels.astype(dtype), affine, dtype=dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image.to_bytes()


def patched(content: bytes, **fields) -> bytes:
    """`content` with header fields overwritten; dim and pixdim take {index: value}."""
    hdr = nibabel.Nifti1Header(content[:348], "<", check=False)
    for name, value in fields.items():
        if isinstance(value, dict):
            for index, item in value.items():
                hdr[name][index] = item
        else:
            hdr[name] = value
    return hdr.binaryblock + content[348:]


def raw_field(content: bytes, name: str, value: bytes) -> bytes:
    at = nibabel.Nifti1Header.template_dtype.fields[name][1]
    return content[:at] + value + content[at + len(value) :]


def read(folder: Path, content: bytes, name: str = "t1.nii", **options) -> Volume:
    path = folder / name
    path.touch()
    with path.open("r+b") as file:  # thousands of files: rewriting one is faster than making it
        file.write(content)
        file.truncate()
    return read_volume(path, ReadOptions(**options), name)


def deflated(content: bytes, zeros: int) -> bytes:
    """A gzip stream of `content` and then `zeros` zero bytes, its end and checksum missing.

    A flushed block of zeros is compressed once and repeated: a bomb without the wait.
    """
    block = 1 << 24
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
    bomb = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return start + bomb * (zeros // block)


GOOD = nifti()
FLOAT = nifti(VOXELS + 0.5, np.float32)
PACKED = gzip.compress(GOOD)
NAN = struct.pack("<f", float("nan"))


def with_extension(size: int, vox_offset: int, room: int) -> bytes:
    """GOOD with an extension that says it has `size` bytes, where the file has `room` bytes."""
    header = patched(GOOD, vox_offset=vox_offset)[:348]
    extension = struct.pack("<ii", size, 6) + b"comment"
    return header + b"\1\0\0\0" + extension.ljust(room, b"\0")[:room] + GOOD[352:]


def with_voxel(value: float) -> bytes:
    voxels = VOXELS.astype(np.float32)
    voxels[3, 4, 5] = value
    return nifti(voxels, np.float32)


def oriented(qform_code: int, sform_code: int, **fields) -> bytes:
    return patched(GOOD, qform_code=qform_code, sform_code=sform_code, **fields)


def sheared(shear: float) -> bytes:
    affine = AFFINE.copy()
    affine[0, 1] = shear
    # nibabel's qform cannot hold shear; only the sform does.
    image = nibabel.Nifti1Image(VOXELS.astype(np.int16), affine)
    image.header["qform_code"] = 0
    return image.to_bytes()


REFUSED: dict[str, tuple[str, bytes]] = {
    "N01 empty": ("TD3101", b""),
    "N01 empty gzip": ("TD3101", gzip.compress(b"")),
    "N02 truncated header": ("TD3102", GOOD[:200]),
    "N03 truncated data": ("TD3103", GOOD[:452]),
    "N03 truncated data in a whole gzip": ("TD3103", gzip.compress(GOOD[:-7])),
    "N04 gzip cut in half": ("TD3104", PACKED[: len(PACKED) // 2]),
    "N04 gzip without its trailer": ("TD3104", PACKED[:-4]),
    "N05 gzip checksum": ("TD3105", PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:]),
    "N05 gzip length": ("TD3105", PACKED[:-1] + bytes([PACKED[-1] ^ 1])),
    "N07 garbage after gzip": ("TD3106", PACKED + b"garbage"),
    "N07 one byte after gzip": ("TD3106", PACKED + b"\x1f"),
    "N07 a second image in the gzip": ("TD3106", PACKED + gzip.compress(GOOD)),
    "N07 bytes after plain data": ("TD3106", GOOD + b"\0"),
    "N08 Git LFS pointer": ("TD3108", b"version https://git-lfs.github.com/spec/v1\noid sha256:4"),
    "N09 HTML page": ("TD3109", b"<!DOCTYPE html><html>404</html>"),
    "N09 long text": ("TD3109", b"not an image " * 100),
    "N12 dims 32767": ("TD3111", patched(GOOD, dim={1: 32767, 2: 32767, 3: 32767})),
    "N14 negative dim": ("TD3112", patched(GOOD, dim={1: -5})),
    "N15 zero dim": ("TD3112", patched(GOOD, dim={2: 0})),
    "N15 no axes": ("TD3112", patched(GOOD, dim={0: 0})),
    "N16 nine axes": ("TD3112", patched(GOOD, dim={0: 9})),
    "N17 one axis": ("TD3113", patched(GOOD, dim={0: 1})),
    "N17 two axes": ("TD3113", patched(GOOD, dim={0: 2})),
    "N18 five volumes": ("TD3114", patched(GOOD, dim={0: 4, 4: 5})),
    "N20 datatype 9999": ("TD3115", patched(GOOD, datatype=9999)),
    "N21 RGB": ("TD3115", patched(GOOD, datatype=128, bitpix=24)),
    "N21 complex": ("TD3115", patched(GOOD, datatype=32, bitpix=64)),
    "N22 bitpix": ("TD3115", patched(GOOD, bitpix=32)),
    "N24 slope NaN": ("TD3116", raw_field(GOOD, "scl_slope", NAN)),
    "N24 slope Inf": ("TD3116", patched(GOOD, scl_slope=np.inf)),
    "N25 intercept NaN": ("TD3116", raw_field(patched(GOOD, scl_slope=1), "scl_inter", NAN)),
    "N27 slope 1e38": ("TD3107", patched(GOOD, scl_slope=1e38)),
    "N28 offset -5": ("TD3118", patched(GOOD, vox_offset=-5)),
    "N28 offset 100": ("TD3118", patched(GOOD, vox_offset=100)),
    "N28 offset NaN": ("TD3118", raw_field(GOOD, "vox_offset", NAN)),
    "N28 offset 1e9": ("TD3118", patched(GOOD, vox_offset=1e9)),
    "N28 offset past the end": ("TD3118", patched(GOOD, vox_offset=1e5)),
    "N28 offset 352.5": ("TD3118", patched(GOOD, vox_offset=352.5)),
    "N29 extension of 2^30 bytes": ("TD3119", with_extension(1 << 30, 384, 32)),
    "N29 extension not in vox_offset": ("TD3119", with_extension(32, 352, 32)),
    "N29 extension past vox_offset": ("TD3119", with_extension(64, 384, 32)),
    "N29 extension of 0 bytes": ("TD3119", with_extension(0, 384, 32)),
    "N30 magic of a pair": ("TD3102", patched(GOOD, magic=b"ni1")),
    "N30 bad magic": ("TD3102", patched(GOOD, magic=b"abc")),
    "N30 bad header size": ("TD3102", patched(GOOD, sizeof_hdr=349)),
    "N33 microns": ("TD3120", patched(GOOD, xyzt_units=3)),
    "G06 sheared": ("TD3203", sheared(0.3)),
    "G08 affine zero": ("TD3204", oriented(0, 1, srow_x=0, srow_y=0, srow_z=0)),
    "G08 affine singular": ("TD3204", oriented(0, 1, srow_y=[1.0, 0, 0, 0])),
    "G08 affine NaN": ("TD3204", oriented(0, 1, srow_x=[np.nan, 0, 0, 0])),
    "G08 origin far away": ("TD3204", oriented(0, 1, srow_x=[1, 0, 0, 1e30])),
    "G09 pixdim 0": ("TD3204", oriented(1, 0, pixdim={2: 0})),
    "G09 pixdim NaN": ("TD3204", oriented(1, 0, pixdim={2: np.nan})),
    "G09 qfac 3": ("TD3204", oriented(1, 0, pixdim={0: 3})),
    "G10 quaternion": ("TD3204", oriented(1, 0, quatern_b=0.9, quatern_c=0.9)),
    "G11 no orientation": ("TD3205", oriented(0, 0)),
    "G11 undefined code": ("TD3204", oriented(77, 0)),
    "G12 qform against sform": ("TD3206", oriented(1, 1, srow_x=[1, 0, 0, -30])),
    "V01 one NaN": ("TD3107", with_voxel(np.nan)),
    "V02 one Inf": ("TD3107", with_voxel(np.inf)),
    "V03 all NaN": ("TD3107", nifti(np.full(SHAPE, np.nan), np.float32)),
}


@pytest.mark.parametrize(("code", "content"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("packed", [False, True], ids=["nii", "nii.gz"])
def test_refuses_a_bad_file_by_its_code(code: str, content: bytes, packed: bool, tmp_path: Path):
    if packed and not content.startswith(b"\x1f\x8b") and content:
        content = gzip.compress(content)
    kind = GeometryError if code.startswith("TD32") else NiftiError
    with pytest.raises(kind) as caught:
        read(tmp_path, content, "sub-01/t1.nii".replace("/", "_"))
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    assert caught.value.where == "sub-01_t1.nii"


ACCEPTED: dict[str, tuple[bytes, str, str | None]] = {
    "plain": (GOOD, "a.nii", None),
    "gzip": (PACKED, "a.nii.gz", None),
    "gzip of several members": (
        gzip.compress(GOOD[:999]) + gzip.compress(GOOD[999:]),
        "a.gz",
        None,
    ),
    "NIfTI-2": (nifti(kind=nibabel.Nifti2Image), "a.nii", None),
    "N10 plain named gz": (GOOD, "a.nii.gz", "W3110"),
    "N10 gzip named nii": (PACKED, "a.nii", "W3110"),
    "N19 4-D of one volume": (patched(GOOD, dim={0: 4, 4: 1}), "a.nii", "extra axes dropped"),
    "N23 slope 0": (patched(GOOD, scl_slope=0, scl_inter=7), "a.nii", None),
    "scaled": (patched(GOOD, scl_slope=0.37, scl_inter=-3), "a.nii", None),
    "N26 slope -1": (patched(GOOD, scl_slope=-1), "a.nii", "W3117"),
    "N29 good extension": (with_extension(32, 384, 32), "a.nii", None),
    "N29 padding after the extension": (with_extension(32, 392, 40), "a.nii", None),
    "N32 uint16": (nifti(VOXELS * 60, np.uint16), "a.nii", None),
    "N32 int8": (nifti(VOXELS % 100 - 50, np.int8), "a.nii", None),
    "N32 float64": (nifti(VOXELS / 8, np.float64), "a.nii", None),
    "N32 uint32 over 2^24": (nifti(VOXELS + (1 << 24) + 1, np.uint32), "a.nii", "rounded"),
    "V19 float64 of over 24 bits": (nifti(VOXELS / 7, np.float64), "a.nii", "rounded"),
    "G07 shear by rounding": (sheared(2e-6), "a.nii", None),
    "qform alone": (oriented(1, 0), "a.nii", None),
    "qfac 1 with a turn": (nifti(affine=TURN @ np.diag([1, 2, 3, 1.0])), "a.nii", None),
    "sform alone, pixdim 0": (oriented(0, 2, pixdim={1: 0}), "a.nii", None),
}


@pytest.mark.parametrize(("content", "name", "note"), ACCEPTED.values(), ids=ACCEPTED)
def test_reads_what_nibabel_reads(content: bytes, name: str, note: str | None, tmp_path: Path):
    notes: list[str] = []
    path = tmp_path / name
    path.write_bytes(content)
    volume = read_volume(path, ReadOptions(), name, notes=notes)

    plain = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    kind = nibabel.Nifti2Image if plain[4:7] == b"n+2" else nibabel.Nifti1Image
    expected = kind.from_bytes(plain)
    values = np.asarray(expected.dataobj, dtype=np.float64).reshape(SHAPE)
    np.testing.assert_array_equal(volume.data, values.astype(np.float32))
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)
    assert volume.data.dtype == np.float32
    assert volume.data.flags.c_contiguous
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_big_endian_files_read_the_same(tmp_path: Path):  # N31
    image = nibabel.Nifti1Image.from_bytes(FLOAT)
    big = nibabel.Nifti1Image(image.dataobj, image.affine, image.header.as_byteswapped(">"))
    content = big.to_bytes()
    assert content[:4] == b"\0\0\x01\x5c"
    assert read(tmp_path, content).sha256 == read(tmp_path, FLOAT).sha256


def test_digest_is_of_voxels_and_affine_not_of_the_file(tmp_path: Path):
    plain = read(tmp_path, GOOD)
    assert read(tmp_path, gzip.compress(GOOD, 1), "b.nii.gz").sha256 == plain.sha256
    assert read(tmp_path, nifti(dtype=np.float64), "c.nii").sha256 == plain.sha256
    moved = AFFINE.copy()
    moved[0, 3] += 1
    assert read(tmp_path, nifti(affine=moved)).sha256 != plain.sha256
    assert read(tmp_path, nifti(VOXELS + 1)).sha256 != plain.sha256


def test_header_keeps_the_grid_and_drops_free_text(tmp_path: Path):
    content = patched(GOOD, descrip=b"Doe^Jane", aux_file=b"jane", db_name=b"jane")
    header = read(tmp_path, content).header
    assert b"ane" not in header.binaryblock
    np.testing.assert_allclose(header.get_best_affine(), AFFINE, atol=1e-6)
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    assert header.get_data_shape() == SHAPE


def test_every_single_bit_flip_in_a_gzip_body_is_detected(tmp_path: Path):  # N06
    rng = np.random.default_rng(6)
    content = gzip.compress(nifti(VOXELS, np.float32))
    codes = []
    for _ in range(200):
        damaged = bytearray(content)
        # 10 bytes of gzip header; after the body 8 bytes of checksum and length.
        bit = int(rng.integers(8 * 10, 8 * (len(content) - 9)))
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputDataError) as caught:
            read(tmp_path, bytes(damaged), "t1.nii.gz")
        codes.append(caught.value.code)
    # A flip may also end the stream early or late, or hit the header; the rest fails the checksum.
    assert codes.count("TD3105") > 150


def test_no_mutated_header_escapes_as_anything_but_a_finding(tmp_path: Path):  # N38
    """Either an InputDataError, or a volume that a forecast could use."""
    rng = np.random.default_rng(38)
    num_read = 0
    for i in range(3000):
        content = bytearray(GOOD)
        for _ in range(rng.integers(1, 5)):
            at = int(rng.integers(0, 352))
            content[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
        name = "t1.nii"
        if i % 8 == 0:
            content, name = bytearray(gzip.compress(bytes(content), 1)), "t1.nii.gz"
        try:
            volume = read(tmp_path, bytes(content), name, max_voxels=10**6)
        except InputDataError:
            continue
        num_read += 1
        assert np.isfinite(volume.data).all()
        assert np.linalg.cond(volume.affine[:3, :3]) < 1e40
        axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
        assert np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3
    assert 300 < num_read < 2700  # both outcomes are exercised


def test_no_mutated_gzip_escapes_as_anything_but_a_finding(tmp_path: Path):  # N38
    rng = np.random.default_rng(39)
    intact = read(tmp_path, GOOD).sha256
    for _ in range(1000):
        content = bytearray(PACKED)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        content = content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.2 else content
        try:
            volume = read(tmp_path, bytes(content), "t1.nii.gz")
        except InputDataError:
            continue
        assert volume.sha256 == intact  # a byte of the gzip header, or one replaced by itself


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_is_refused_from_its_header(tmp_path: Path):  # N11
    header = patched(FLOAT, dim={1: 1024, 2: 1024, 3: 512})[:352]
    bomb = deflated(header, zeros=1 << 31)
    assert 2_000_000 < len(bomb) < 2_200_000

    def refuse() -> None:
        with pytest.raises(NiftiError, match="declares 536870912 voxels") as caught:
            read(tmp_path, bomb, "t1.nii.gz")
        assert caught.value.code == "TD3111"

    start = time.perf_counter()
    assert peak_bytes(refuse) < 5e6
    assert time.perf_counter() - start < 0.2


def test_no_more_is_inflated_than_the_header_declares(tmp_path: Path):  # N13
    bomb = deflated(FLOAT, zeros=1 << 30)

    def refuse() -> None:
        with pytest.raises(NiftiError, match="at least 65536 bytes follow") as caught:
            read(tmp_path, bomb, "t1.nii.gz")
        assert caught.value.code == "TD3106"

    assert peak_bytes(refuse) < 5e6


def test_truncated_data_say_how_many_bytes_there_are(tmp_path: Path):  # N03
    with pytest.raises(NiftiError, match="100 of 2160 bytes"):
        read(tmp_path, GOOD[:452])


def test_nonfinite_voxels_are_counted(tmp_path: Path):  # V01, V02
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, :9] = np.nan
    voxels[1, 0, :3] = [np.inf, -np.inf, np.inf]
    match = r"12 non-finite voxels \(9 NaN, 3 Inf\) of 1080"
    with pytest.raises(NiftiError, match=match) as caught:
        read(tmp_path, nifti(voxels, np.float32))
    assert "--nonfinite=zero" in caught.value.fix


def test_nonfinite_voxels_become_zero_on_request(tmp_path: Path):  # V01
    path = tmp_path / "t1.nii"
    path.write_bytes(with_voxel(np.nan))
    notes: list[str] = []
    volume = read_volume(path, ReadOptions(nonfinite="zero"), "t1", notes=notes)
    expected = VOXELS.astype(np.float32)
    expected[3, 4, 5] = 0
    np.testing.assert_array_equal(volume.data, expected)
    assert notes == ["t1: 1 non-finite voxels (1 NaN, 0 Inf) of 1080 set to 0"]


def test_all_findings_of_a_header_are_raised_together(tmp_path: Path):
    content = patched(GOOD, datatype=9999, dim={1: -5}, vox_offset=100, qform_code=0, sform_code=0)
    with pytest.raises(NiftiError) as caught:
        read(tmp_path, content)
    assert [f.code for f in caught.value.findings] == ["TD3112", "TD3115", "TD3118", "TD3205"]


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_a_conflict_is_settled_by_naming_a_form(form: str, tmp_path: Path):  # G12
    path = tmp_path / "t1.nii"
    path.write_bytes(oriented(1, 1, srow_x=[1, 0, 0, -30]))
    notes: list[str] = []
    volume = read_volume(path, ReadOptions(affine=form), "t1", notes=notes)
    header = nibabel.load(path).header
    np.testing.assert_allclose(volume.affine, getattr(header, f"get_{form}")(), atol=1e-6)
    assert form in notes[0]


def test_qform_and_sform_may_differ_by_half_a_voxel(tmp_path: Path):  # G12
    """The sform counts then, as in nibabel; the smallest voxel edge is 0.9 mm."""
    row = [-1, 0, 0, 30.44]
    assert read(tmp_path, oriented(1, 1, srow_x=row)).affine[0, 3] == pytest.approx(30.44)
    with pytest.raises(GeometryError, match=r"disagree by up to 0.46 mm \(0.511 voxels"):
        read(tmp_path, oriented(1, 1, srow_x=[-1, 0, 0, 30.46]))


def test_naming_an_absent_form_is_refused(tmp_path: Path):
    with pytest.raises(GeometryError, match="the header has no sform") as caught:
        read(tmp_path, oriented(1, 0), affine="sform")
    assert caught.value.code == "TD3205"


def test_orientation_is_assumed_only_on_request(tmp_path: Path):  # G11
    volume = read(tmp_path, oriented(0, 0), assume_ras=True)
    np.testing.assert_allclose(volume.affine, np.diag([1, 1.1, 0.9, 1]), atol=1e-6)


def test_microns_and_metres_are_converted(tmp_path: Path):  # N33
    for unit, scale in ((3, 1000.0), (1, 0.001)):
        affine = np.diag([scale, scale, scale, 1.0]) @ AFFINE
        for codes in ((1, 0), (0, 1), (1, 1)):
            content = patched(
                nifti(affine=affine), xyzt_units=unit, qform_code=codes[0], sform_code=codes[1]
            )
            notes: list[str] = []
            path = tmp_path / "t1.nii"
            path.write_bytes(content)
            volume = read_volume(path, ReadOptions(), "t1", notes=notes)
            np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
            assert "W3120" in notes[0]


def refusal(path: Path) -> TadiffError:
    with pytest.raises(NiftiError) as caught:
        read_volume(path, ReadOptions(), str(path))
    return caught.value


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path):  # N34
    os.mkfifo(tmp_path / "pipe.nii")
    with socket.socket(socket.AF_UNIX) as server:
        # A relative name: a socket path has at most 107 bytes.
        before = Path.cwd()
        os.chdir(tmp_path)
        try:
            server.bind("socket.nii")
        finally:
            os.chdir(before)
        paths = [tmp_path, tmp_path / "pipe.nii", tmp_path / "socket.nii", Path("/dev/zero")]
        assert [refusal(path).code for path in paths] == ["TD3121"] * 4


def test_missing_files(tmp_path: Path):  # N35
    names = ["missing.nii", "a/b.nii", "x" * 300, "nul\0.nii"]
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    codes = [refusal(tmp_path / name).code for name in [*names, "loop.nii"]]
    assert codes == ["TD3122"] * 5


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "I/O")])
def test_unreadable_files(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # N35
    def fail(*args: object) -> None:
        raise error

    path = tmp_path / "t1.nii"
    path.write_bytes(GOOD)
    if isinstance(error, PermissionError):
        monkeypatch.setattr(os, "open", fail)  # root may read everything
    else:
        monkeypatch.setattr(ByteSource, "read", fail)
    assert refusal(path).code == "TD3123"


def test_a_file_replaced_while_it_is_read_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # N36
    expected = read(tmp_path, GOOD).sha256
    path = tmp_path / "t1.nii"
    other = tmp_path / "other.nii"
    other.write_bytes(FLOAT)
    finish = ByteSource.read_into

    def swap_first(self: ByteSource, buffer: memoryview) -> int:
        other.replace(path)
        return finish(self, buffer)

    monkeypatch.setattr(ByteSource, "read_into", swap_first)
    assert read_volume(path, ReadOptions(), "t1").sha256 == expected


def test_a_file_written_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # N36
    path = tmp_path / "t1.nii"
    path.write_bytes(GOOD)
    finish = ByteSource.finish

    def grow_after(self: ByteSource) -> None:
        finish(self)
        with path.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(ByteSource, "finish", grow_after)
    assert refusal(path).code == "TD3129"


@pytest.mark.parametrize(
    "name", [b"new\nline.nii", b"\x1b[2J.nii", b"\xff\xfe.nii", b"-rf.nii", b"n" * 251 + b".nii"]
)
def test_hostile_names_are_read_and_never_reach_the_terminal(name: bytes, tmp_path: Path):  # N37
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(GOOD)
    label = path.name
    assert read_volume(path, ReadOptions(), label).data.shape == SHAPE
    path.write_bytes(b"")
    with pytest.raises(NiftiError) as caught:
        read_volume(path, ReadOptions(), label)
    text = describe(caught.value, "tadiff-rt")
    assert text.isascii()
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == 3


def test_too_little_memory_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ByteSource, "read_into", fail)
    with pytest.raises(ResourceError) as caught:
        read(tmp_path, GOOD)
    assert (caught.value.code, caught.value.exit_code) == ("TD7001", 7)
