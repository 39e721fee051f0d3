"""N01 to N13: one image file that is empty, cut off, damaged, too large or something else."""

import gzip

from tests.corpus import forge
from tests.corpus.case import Accepted, CorpusCase, Either, Refused, Spoil
from tests.corpus.forge import patched, plain, put, put_plain, put_raw
from tests.corpus.phantom import Data

MANY_FLIPS = 200
WAYS_OF_A_FLIP = ("TD3105", "TD3103", "TD3104", "TD3106")


def bad(
    id: str, what: str, code: str, spoil: Spoil, *, says: tuple[str, ...] = (), differs: str = ""
) -> CorpusCase:
    """A file that is refused."""
    return CorpusCase(
        id=id, what=what, spoil=spoil, ending=Refused((code,), says=says), differs=differs
    )


def bad_header(id: str, what: str, code: str, **fields: object) -> CorpusCase:
    """A file that is refused for fields of its header."""
    return bad(id, what, code, lambda d: put(d, patched(plain(d), **fields)))


def odd(id: str, what: str, spoil: Spoil, ending: Accepted) -> CorpusCase:
    """A file that is read."""
    return CorpusCase(id=id, what=what, spoil=spoil, ending=ending)


EQUAL = Accepted("equal", no_note=True)


def packed(data: Data) -> bytes:
    return data.image().read_bytes()


CASES = (
    bad("N01", "0 bytes", "TD3101", lambda d: put_raw(d, b"")),
    bad("N01", "gzip of 0 bytes", "TD3101", lambda d: put(d, b"")),
    bad("N02", "the first 200 bytes, plain", "TD3102", lambda d: put_plain(d, plain(d)[:200])),
    bad("N02", "the first 200 bytes, in gzip", "TD3102", lambda d: put(d, plain(d)[:200])),
    bad(
        "N03",
        "data cut after 100 bytes",
        "TD3103",
        lambda d: put_plain(d, plain(d)[:452]),
        says=("100 of 43008 bytes",),
    ),
    bad("N03", "data cut, in a whole gzip", "TD3103", lambda d: put(d, plain(d)[:-7])),
    bad(
        "N04", "gzip cut in half", "TD3104", lambda d: put_raw(d, packed(d)[: len(packed(d)) // 2])
    ),
    bad("N04", "gzip without its trailer", "TD3104", lambda d: put_raw(d, packed(d)[:-4])),
    bad(
        "N05",
        "checksum of the gzip",
        "TD3105",
        lambda d: put_raw(d, forge.flip_bit(packed(d), 8 * len(packed(d)) - 60)),
    ),
    bad(
        "N05",
        "length in the gzip",
        "TD3105",
        lambda d: put_raw(d, forge.flip_bit(packed(d), 8 * len(packed(d)) - 30)),
    ),
    CorpusCase(
        id="N06",
        what="one random bit of the deflate body",
        spoil=lambda d: put_raw(
            d, forge.random_flip(gzip.compress(forge.good_flair(), 6), d.variant)
        ),
        ending=Either(WAYS_OF_A_FLIP, may_be_accepted=False),
        many=20,
        many_files=MANY_FLIPS,
        slow=True,
        differs="All are refused. A flip that ends the stream early or late has the code of that "
        "(TD3103, TD3104, TD3106) instead of the checksum's.",
    ),
    bad("N07", "garbage after the gzip", "TD3106", lambda d: put_raw(d, packed(d) + b"garbage")),
    bad("N07", "one byte after the gzip", "TD3106", lambda d: put_raw(d, packed(d) + b"\x1f")),
    bad("N07", "a second image in the gzip", "TD3106", lambda d: put_raw(d, packed(d) * 2)),
    bad("N07", "a byte after plain data", "TD3106", lambda d: put_plain(d, plain(d) + b"\0")),
    bad(
        "N08",
        "a Git LFS pointer",
        "TD3108",
        lambda d: put_raw(d, b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n"),
        says=("Git LFS pointer", "git lfs pull"),
    ),
    bad(
        "N09",
        "an HTML page",
        "TD3109",
        lambda d: put_raw(d, b"<!DOCTYPE html><html>404</html>"),
        says=("<!DOCTYPE",),
    ),
    bad("N09", "long text", "TD3109", lambda d: put_raw(d, b"not an image " * 100)),
    odd(
        "N10",
        "plain, named .nii.gz",
        lambda d: put_raw(d, plain(d)),
        Accepted("equal", note="W3110"),
    ),
    odd(
        "N10",
        "gzip, named .nii",
        lambda d: put_plain(d, packed(d)),
        Accepted("equal", note="W3110"),
    ),
    CorpusCase(
        id="N11",
        what="a bomb of 2 GiB in 2 MB",
        spoil=lambda d: put_raw(
            d, forge.deflated(patched(plain(d), dim={1: 1024, 2: 1024, 3: 512})[:352], 1 << 31)
        ),
        ending=Refused(("TD3111",)),
        cpu_seconds=0.2,
        memory_mb=150,
    ),
    bad_header(
        "N12", "32767 x 32767 x 32767 voxels", "TD3111", dim={1: 32767, 2: 32767, 3: 32767}
    ),
    CorpusCase(
        id="N13",
        what="1 GiB behind the voxels",
        spoil=lambda d: put_raw(d, forge.deflated(plain(d), 1 << 30)),
        ending=Refused(("TD3106",), says=("at least 65536 bytes follow",)),
        cpu_seconds=0.5,
        memory_mb=150,
    ),
)
