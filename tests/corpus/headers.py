"""N14 to N33: what a header can say, wrong or odd, and the forms in which voxels can be stored."""

import nibabel
import numpy as np

from tests.corpus import forge
from tests.corpus.case import Accepted
from tests.corpus.files import EQUAL, bad, bad_header, odd
from tests.corpus.forge import NAN, patched, plain, put, raw_field
from tests.corpus.phantom import AFFINE, Data, Voxels

NO_REPAIR = "There is no --fix-header: the fix names the field to set."


HEADERS = (
    bad_header("N14", "dim[1] is -5", "TD3112", dim={1: -5}),
    bad_header("N15", "dim[2] is 0", "TD3112", dim={2: 0}),
    bad_header("N15", "no axes", "TD3112", dim={0: 0}),
    bad_header("N16", "nine axes", "TD3112", dim={0: 9}),
    bad_header("N17", "one axis", "TD3113", dim={0: 1}),
    bad_header("N17", "two axes", "TD3113", dim={0: 2}),
    bad(
        "N18",
        "five volumes",
        "TD3114",
        lambda d: put(d, forge.nifti(np.stack([d.voxels()] * 5, -1))),
        says=("save the volume",),
        differs="There is no --volume: the fix asks for a 3-D file.",
    ),
    odd(
        "N19",
        "a fourth axis of 1",
        lambda d: put(d, patched(plain(d), dim={0: 4, 4: 1})),
        Accepted("equal", note="extra axes dropped"),
    ),
    odd(
        "N19",
        "five axes",
        lambda d: d.put(d.voxels()[..., None, None]),
        Accepted("equal", note="extra axes dropped"),
    ),
    bad_header("N20", "datatype 9999", "TD3115", datatype=9999),
    bad_header("N21", "RGB", "TD3115", datatype=128, bitpix=24),
    bad_header("N21", "complex", "TD3115", datatype=32, bitpix=64),
    bad_header("N22", "bitpix of another datatype", "TD3115", bitpix=32),
    odd("N23", "slope 0", lambda d: put(d, patched(plain(d), scl_slope=0, scl_inter=7)), EQUAL),
    bad(
        "N24",
        "slope NaN",
        "TD3116",
        lambda d: put(d, raw_field(plain(d), "scl_slope", NAN)),
        differs=NO_REPAIR,
    ),
    bad(
        "N24",
        "slope infinite",
        "TD3116",
        lambda d: put(d, patched(plain(d), scl_slope=np.inf)),
        differs=NO_REPAIR,
    ),
    bad(
        "N25",
        "intercept NaN",
        "TD3116",
        lambda d: put(d, raw_field(patched(plain(d), scl_slope=1), "scl_inter", NAN)),
    ),
    odd(
        "N26",
        "slope -1, voxels negated",
        lambda d: put(d, patched(forge.nifti(-d.voxels()), scl_slope=-1, scl_inter=0)),
        Accepted("equal", note="W3117"),
    ),
    bad_header("N27", "slope 1e38", "TD3107", scl_slope=1e38),
    bad_header("N28", "offset -5", "TD3118", vox_offset=-5),
    bad_header("N28", "offset 100", "TD3118", vox_offset=100),
    bad("N28", "offset NaN", "TD3118", lambda d: put(d, raw_field(plain(d), "vox_offset", NAN))),
    bad_header("N28", "offset 1e9", "TD3118", vox_offset=1e9),
    bad_header("N28", "offset past the end", "TD3118", vox_offset=1e5),
    bad_header("N28", "offset 352.5", "TD3118", vox_offset=352.5),
    bad(
        "N29",
        "extension of 2^30 bytes",
        "TD3119",
        lambda d: put(d, forge.with_extension(plain(d), 1 << 30, 384, 32)),
    ),
    bad(
        "N29",
        "extension not in the offset",
        "TD3119",
        lambda d: put(d, forge.with_extension(plain(d), 32, 352, 32)),
    ),
    bad(
        "N29",
        "extension past the offset",
        "TD3119",
        lambda d: put(d, forge.with_extension(plain(d), 64, 384, 32)),
    ),
    bad(
        "N29",
        "extension of 0 bytes",
        "TD3119",
        lambda d: put(d, forge.with_extension(plain(d), 0, 384, 32)),
    ),
    odd(
        "N29",
        "a good extension",
        lambda d: put(d, forge.with_extension(plain(d), 32, 384, 32)),
        EQUAL,
    ),
    bad_header("N30", "magic of a pair of files", "TD3102", magic=b"ni1"),
    bad_header("N30", "bad magic", "TD3102", magic=b"abc"),
    bad_header("N30", "header of 349 bytes", "TD3102", sizeof_hdr=349),
)


def big_endian(data: Data) -> None:
    old = nibabel.load(data.image())
    new = nibabel.Nifti1Image(np.asarray(old.dataobj), None, old.header.as_byteswapped(">"))
    nibabel.save(new, data.image())


def as_floats(data: Data, change: float = 0.0) -> Voxels:
    return data.voxels().astype(np.float32) + np.float32(change)


def above_24_bits(data: Data) -> Voxels:
    """Voxels of over 2^24, odd ones among them, which float32 cannot hold."""
    voxels = data.voxels().astype(np.uint32)
    return np.where(voxels > 0, voxels * 40_009 + 1, 0).astype(np.uint32)


FORMS = (
    odd("N31", "big-endian", big_endian, EQUAL),
    odd("N32", "uint16", lambda d: d.put(d.voxels().astype(np.uint16)), EQUAL),
    odd("N32", "float64", lambda d: d.put(d.voxels().astype(np.float64)), EQUAL),
    odd("N32", "float32", lambda d: d.put(as_floats(d)), EQUAL),
    odd("N32", "int8", lambda d: d.put((d.voxels() // 8).astype(np.int8)), Accepted()),
    odd(
        "N32",
        "uint32 over 2^24",
        lambda d: d.put(above_24_bits(d)),
        Accepted(
            "close",
            like=odd("N32", "-", lambda d: d.put(above_24_bits(d).astype(np.float32)), Accepted()),
            note="rounded",
        ),
    ),
    odd(
        "N32",
        "NIfTI-2",
        lambda d: put(d, forge.nifti(d.voxels(), kind=nibabel.Nifti2Image)),
        EQUAL,
    ),
    bad(
        "N33",
        "2 mm voxels said to be of microns",
        "TD3120",
        lambda d: put(d, patched(plain(d), xyzt_units=3)),
    ),
    odd(
        "N33",
        "microns",
        lambda d: put(
            d,
            patched(forge.nifti(d.voxels(), np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE), xyzt_units=3),
        ),
        Accepted("close", note="W3120"),
    ),
)
CASES = (*HEADERS, *FORMS)
