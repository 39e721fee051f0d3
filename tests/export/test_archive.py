"""The zip of a checkpoint: read as zipfile reads it where it is sound, refused where it is not."""

import io
import random
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from tadiff_export.archive import MAX_ENTRIES, open_archive
from tadiff_export.tensors import parse
from tadiff_rt.errors import ModelFileError
from tests.export.crafted import Member, members, pack, saved, zipped

PICKLE = b"\x80\2}."
VALUE = {"w": torch.arange(200.0).reshape(4, 50) / 7, "b": torch.arange(3)}


@pytest.fixture(scope="module")
def honest() -> bytes:
    return saved(VALUE)


def code_of(data: bytes, words: str = "") -> str:
    with pytest.raises(ModelFileError) as caught:
        open_archive(data, "x.pt")
    assert words in caught.value.message
    assert caught.value.where == "x.pt"
    assert caught.value.fix
    return caught.value.code


def repacked(data: bytes) -> bytes:
    """The same entries in a zip by Python's writer: no zip64 records, no data descriptors."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in members(data).items():
            archive.writestr(name, raw)
    return out.getvalue()


def test_reads_what_zipfile_reads(honest):
    crafted = pack([Member(name, raw) for name, raw in members(honest).items()])
    for data in (honest, repacked(honest), crafted):
        found = open_archive(data, "x.pt").entries
        got = {name: data[e.start : e.start + e.size] for name, e in found.items()}
        assert got == {name.removeprefix("archive/"): raw for name, raw in members(data).items()}
        assert len(got) >= 6


def test_reads_a_file_under_any_name(tmp_path):
    path = tmp_path / "größe 2.pt"  # torch calls the folder in the zip after the file
    torch.save(VALUE, path)
    assert torch.equal(parse(path.read_bytes(), "x").root["w"], VALUE["w"])


def test_every_truncation_is_called_one(honest):
    codes = {n: code_of(honest[:n]) for n in range(1, len(honest))}
    assert set(codes.values()) == {"TD4004"}


def test_every_damaged_number_is_noticed(honest):
    """C03: one bit, anywhere in the storages; torch.load reads 97 % of such files."""
    rng = random.Random(3)
    entries = open_archive(honest, "x").entries
    inside = [e.start + i for name, e in entries.items() for i in range(e.size)]
    for at in rng.sample(inside, 400):
        data = bytearray(honest)
        data[at] ^= 1 << rng.randrange(8)
        assert code_of(bytes(data)) == "TD4005"


def test_no_damaged_header_changes_what_is_read(honest):
    """One bit of every byte: refused, or one of the few that mean nothing (dates, padding)."""
    rng = random.Random(4)
    ignored = 0
    expected = {k: v.tolist() for k, v in VALUE.items()}
    for at in range(len(honest)):
        data = bytearray(honest)
        data[at] ^= 1 << rng.randrange(8)
        try:
            found = parse(bytes(data), "x").root
        except ModelFileError:
            continue
        ignored += 1
        assert {k: v.tolist() for k, v in found.items()} == expected
    assert ignored < 0.25 * len(honest)  # 0.19, by padding, dates and versions


LIES = {
    "encrypted": ("is encrypted", {"central": {"flags": 0x0809}, "local": {"flags": 0x0809}}),
    "unknown flag": ("flags 0x0828", {"central": {"flags": 0x0828}, "local": {"flags": 0x0828}}),
    "flags differ": ("local header", {"local": {"flags": 0x0008}}),
    "deflated": ("compressed", {"central": {"method": 8}, "local": {"method": 8}}),
    "method differs": ("local header", {"local": {"method": 8}}),
    "packed size": ("compressed", {"central": {"packed": 3}}),
    "longer than the file": ("into the directory", {"central": {"size": 2**31, "packed": 2**31}}),
    "zip64 size": ("into the directory", {"central": {"size": 2**32 - 1, "packed": 2**32 - 1}}),
    "zip64 extra": ("extra fields", {"central": {"extra": struct.pack("<2HQ", 1, 8, 4)}}),
    "unicode path extra": (
        "extra fields",
        {"central": {"extra": struct.pack("<2HBL", 0x7075, 5, 1, 0)}},
    ),
    "comment": ("a comment", {"central": {"comment": b"x"}}),
    "other disk": ("another disk", {"central": {"disk": 1}}),
    "name differs": ("local header", {"local": {"name": b"a/data.pkx"}}),
    "local size": ("local header", {"local": {"size": 5, "packed": 5}}),
    "local crc": ("local header", {"local": {"crc": 1}}),
    "descriptor size": ("data descriptor", {"descriptor": {"size": 5}}),
    "descriptor crc": ("data descriptor", {"descriptor": {"crc": 1}}),
    "overlap": ("overlaps", {"central": {"offset": 4}}),
    "gap": ("leaves a gap", {"before": b"hidden"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_an_entry(lie):
    assert open_archive(pack([Member("a/data.pkl", PICKLE), Member("a/x")]), "x")
    words, fields = LIES[lie]
    data = pack([Member("a/x", b"12"), Member("a/data.pkl", PICKLE, **fields)])
    assert code_of(data, words) == "TD4009"


def test_an_entry_inside_another():
    """Headers and numbers of "a/x" are numbers of "a/big", to its last byte."""
    plain = {"flags": 0x0800}
    x = Member("a/x", b"12", local=plain | {"crc": zlib.crc32(b"12"), "packed": 2, "size": 2})
    inner = pack([x]).partition(b"PK\1\2")[0]
    sizes = {"crc": zlib.crc32(inner), "packed": len(inner), "size": len(inner)}
    first = pack([Member("a/data.pkl", PICKLE)]).index(b"PK\1\2")
    head = 30 + len("a/big") + 6
    big = Member("a/big", inner, local=plain | sizes, central=plain)
    listed = Member("a/x", b"12", central=plain | {"offset": first + head}, only_listed=True)
    assert open_archive(pack([Member("a/data.pkl", PICKLE), big]), "x").entries["big"]
    data = pack([Member("a/data.pkl", PICKLE), big, listed])
    assert code_of(data, "overlaps") == "TD4009"


NAMES = ["/a/x", "a/../x", "../x", "a//x", "a/x/", "a/./x", "a\\x", "a/\0", "a/\n", "a/\x1b[2J"]
NAMES += ["b/x", "x", b"a/\xff", "a/" + "x" * 2000, "a/data.pkl", "a/b/data.pkl", "b/data.pkl"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_entries(name):
    assert code_of(pack([Member("a/data.pkl", PICKLE), Member(name)])) == "TD4009"


ENDS = {
    "more entries": {"count": 3},
    "fewer entries": {"count": 1},
    "fewer in zip64": {"count64": 1},
    "no entries": {"count": 0},
    "directory elsewhere": {"start": 7},
    "directory longer": {"size": 120},
    "comment": {"comment": 4},
    "zip64 elsewhere": {"locator": 1},
}


@pytest.mark.parametrize("zip64", [True, False])
@pytest.mark.parametrize("lie", ENDS)
def test_lies_about_the_end(lie, zip64):
    data = pack([Member("a/data.pkl", PICKLE), Member("a/x")], end=ENDS[lie], zip64=zip64)
    harmless = not zip64 and {"count64", "locator"} & ENDS[lie].keys()
    if harmless:
        assert open_archive(data, "x").entries.keys() == {"data.pkl", "x"}
    else:
        assert code_of(data) == "TD4009"


def test_what_stands_before_after_or_between(honest):
    assert code_of(b"MZ" + honest, "begins with") == "TD4009"
    assert code_of(honest + b"\n", "1 bytes") == "TD4009"
    gap = pack([Member("a/data.pkl", PICKLE)], gap=b"hidden")
    assert code_of(gap, "6 bytes before the directory") == "TD4009"
    assert code_of(honest + honest) == "TD4009"
    two = pack([Member("a/data.pkl", PICKLE), Member("a/x", b"12", before=pack([Member("b/c")]))])
    assert code_of(two) == "TD4009"


def test_a_zip_that_is_no_checkpoint():
    assert code_of(pack([Member("a/x"), Member("a/y")])) == "TD4009"
    assert code_of(pack([Member("data.pkl", PICKLE)])) == "TD4009"
    assert code_of(pack([Member("a/b/data.pkl", PICKLE)])) == "TD4009"
    assert code_of(pack([])) == "TD4009"
    many = pack([Member(f"a/{i}") for i in range(MAX_ENTRIES)] + [Member("a/data.pkl", PICKLE)])
    assert code_of(many) == "TD4009"


@pytest.mark.parametrize("name", ["a/constants.pkl", "a/code/__torch__.py"])
def test_torchscript_is_called_by_its_name(name):
    assert code_of(pack([Member("a/data.pkl", PICKLE), Member(name, b"x")])) == "TD4008"


def test_compressed_checkpoint_is_refused_before_it_grows(tmp_path: Path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", PICKLE)
        archive.writestr("a/data/0", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    assert code_of(path.read_bytes()) == "TD4009"


def test_crafted_zips_are_sound():
    """The writer of these tests makes what zipfile accepts; otherwise the lies prove nothing."""
    data = zipped(PICKLE, {"0": b"abc"})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
    assert members(data)["a/data/0"] == b"abc"
