"""Files of strangers: each hostile or broken one ends in its code, soon, and nothing has run."""

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tadiff_export.opcodes import MAX_CALLS, MAX_OPCODES, MAX_PICKLE_BYTES
from tadiff_export.tensors import parse, read_contents
from tadiff_rt.errors import ModelFileError, describe
from tests.export import fuzz_checkpoints
from tests.export.crafted import (
    Call,
    Member,
    one_tensor,
    pack,
    payload,
    saved,
    tensor,
    text,
    whole,
    zipped,
)

ROOT = Path(__file__).parents[2]
W = torch.arange(6.0).reshape(2, 3)
SIX = np.arange(6, dtype="<f4").tobytes()
LEGACY = b"\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\2M\xe9\3."
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


def pickled(opcodes: bytes, **storages: bytes) -> bytes:
    return zipped(b"\x80\2" + opcodes + b".", storages)


def many(opcodes: bytes, count: int) -> bytes:
    """Opcodes for a list of tuples with `count` values, each made by `opcodes`."""
    return b"](" + (b"(" + opcodes * 500 + b"t") * (count // 500) + b"e"


def quantised() -> torch.Tensor:
    rebuild = torch._utils._rebuild_qtensor
    return Call(rebuild, W, 0, (2, 3), (3, 1), (torch.per_tensor_affine, 0.1, 0), False, {})


def safetensors_file(
    header: object = None, numbers: bytes = SIX, length: int | None = None
) -> bytes:
    """A safetensors file of one tensor "w" with a changed header, numbers or length."""
    given = {"w": entry()} if header is None else header
    raw = given if isinstance(given, bytes) else json.dumps(given).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + numbers


def entry(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# id -> (code, words of the message, the file or what makes it)
FILES: dict[str, tuple[str, str, bytes | Callable[[], bytes]]] = {
    # C01: no checkpoint at all
    "empty": ("TD4001", "is empty", b""),
    "web page": ("TD4002", "web page", b"\xef\xbb\xbf\n<!DOCTYPE html><title>Sign in</title>"),
    "xml error": (
        "TD4002",
        "web page",
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    ),
    "lfs pointer": ("TD4003", "LFS pointer", LFS),
    # C02, C03: transmission
    "cut in half": ("TD4004", "cut off: 700 bytes", saved({"w": W})[:700]),
    "first three bytes": ("TD4004", "cut off", b"PK\3"),
    "flipped bit": (
        "TD4005",
        "'a/data/0' is damaged",
        one_tensor((2, 3), (3, 1)).replace(SIX[8:16], b"\1" * 8),
    ),
    # C05: other formats
    "bare pickle": ("TD4006", "a bare pickle", b"\x80\2}q\0."),
    "text pickle": ("TD4006", "begins with", b"cos\nsystem\n(S'true'\ntR."),
    "legacy torch": ("TD4006", "torch before 1.6", LEGACY),
    "legacy tar": (
        "TD4006",
        "tar file",
        b"pickle".ljust(257, b"\0") + b"ustar  \0".ljust(255, b"\0"),
    ),
    "numpy": ("TD4006", "array of numpy", b"\x93NUMPY\1\0" + bytes(120)),
    "zeros": ("TD4006", "begins with", bytes(4096)),
    "one byte": ("TD4006", "begins with b'x'", b"x"),
    # C07, C09, C15: zips
    "torchscript": (
        "TD4008",
        "TorchScript",
        pack([Member("a/data.pkl"), Member("a/code/__torch__.py")]),
    ),
    "two pickles": ("TD4009", "2 entries", pack([Member("a/data.pkl"), Member("a/b/data.pkl")])),
    "prefix": ("TD4009", "begins with", b"\x7fELF" + one_tensor((2, 3), (3, 1))),
    "only the end of a zip": ("TD4009", "begins with", pack([])),
    # C10: storages
    "storage longer": ("TD4010", "5 float32, but it has 24", one_tensor((5,), (1,), numel=5)),
    "storage shorter": ("TD4010", "7 float32, but it has 24", one_tensor((7,), (1,), numel=7)),
    "storage of doubles": (
        "TD4010",
        "6 float64, but it has 24",
        one_tensor((6,), (1,), kind="torch\nDoubleStorage"),
    ),
    "storage missing": ("TD4010", "'1', which the zip does not", one_tensor((6,), (1,), key="1")),
    "storage outside": (
        "TD4010",
        "which the zip does not",
        one_tensor((6,), (1,), key="../data.pkl"),
    ),
    "storage negative": ("TD4010", "-1 float32", one_tensor((0,), (1,), numel=-1)),
    "big-endian": (
        "TD4010",
        "byte order b'big'",
        pack([Member("a/data.pkl", b"\x80\2}."), Member("a/byteorder", b"big")]),
    ),
    # C11, C12: geometry
    "one past the end": ("TD4010", "beyond the 6", one_tensor((2, 3), (3, 1), 1)),
    "stride past the end": ("TD4010", "beyond the 6", one_tensor((2, 3), (4, 1))),
    "offset past the end": ("TD4010", "beyond the 6", one_tensor((0,), (1,), 7)),
    "negative stride": ("TD4010", "stride -1", one_tensor((2,), (-1,), 5)),
    "negative size": ("TD4010", "size -1", one_tensor((-1, -6), (1, 1))),
    "negative offset": ("TD4010", "offset -1", one_tensor((2,), (1,), -1)),
    "nine dimensions": ("TD4010", "up to 8", one_tensor((1,) * 9, (1,) * 9)),
    "sizes without strides": ("TD4010", "2 sizes and 1", one_tensor((2, 3), (1,))),
    "expanded a million million times": ("TD4010", "4 times the", one_tensor((10**12,), (0,))),
    "expanded beyond 64 bits": (
        "TD4010",
        "elements are read",
        one_tensor((2**40, 2**40, 1), (0, 0, 0)),
    ),
    "expanded empty": ("TD4010", "elements are read", one_tensor((0, 2**40, 2**40), (1, 1, 1))),
    "size of a thousand digits": ("TD4010", "size of 2001 bits", one_tensor((2**2000,), (0,))),
    "stride of a thousand digits": ("TD4010", "stride of 2001 bits", one_tensor((2,), (2**2000,))),
    "five times the file": (
        "TD4010",
        "4 times the",
        lambda: pickled(b"](" + tensor((6, 60), (1, 0)) * 40 + b"e", **{"0": SIX}),
    ),
    "size is a flag": (
        "TD4010",
        "size bool",
        pickled(
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text("0")
            + text("cpu")
            + b"K\6tQK\0\x88\x85K\1\x85\x89}tR",
            **{"0": SIX},
        ),
    ),
    "tensor of a text": (
        "TD4010",
        "6 arguments",
        pickled(b"ctorch._utils\n_rebuild_tensor_v2\n(" + text("x") * 6 + b"tR"),
    ),
    "tensor of nothing": (
        "TD4010",
        "0 arguments",
        pickled(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
    ),
    "parameter of a text": (
        "TD4010",
        "without a tensor",
        pickled(b"ctorch._utils\n_rebuild_parameter\n" + text("x") + b"\x85R"),
    ),
    # C13: tensors that are not dense
    "sparse": ("TD4011", "_rebuild_sparse", lambda: saved([torch.eye(3).to_sparse()])),
    "meta": ("TD4011", "_rebuild_meta", lambda: saved([torch.empty(3, device="meta")])),
    "quantised": ("TD4011", "_rebuild_qtensor", lambda: saved([quantised()])),
    "complex": ("TD4011", "ComplexFloat", lambda: saved([W.cfloat()])),
    "conjugate": (
        "TD4011",
        "conjugate",
        one_tensor((2,), (1,), more=b"}}" + text("conj") + b"\x88s"),
    ),
    "uint16": ("TD4011", "_rebuild_tensor_v3", lambda: saved([W.to(torch.uint16)])),
    "8 bits": ("TD4011", "_rebuild_tensor_v3", lambda: saved([W.to(torch.float8_e4m3fn)])),
    "subclass": ("TD4011", "_rebuild_from_type", lambda: saved([torch.nn.Buffer(W)])),
    "bare storage": ("TD4011", "belongs to no tensor", lambda: saved([W.untyped_storage()])),
    # C16: pickles that cost much
    "nested lists": ("TD4012", "values on the stack", pickled(b"]" * 200_000 + b"a" * 199_999)),
    "nested tuples": ("TD4012", "100 deep", pickled(b")" + b"\x85" * 200_000)),
    "a hundred million opcodes": (
        "TD4012",
        "64000000 are read",
        lambda: pickled(b"N" * (MAX_PICKLE_BYTES + 1)),
    ),
    "opcodes": ("TD4012", "400000 opcodes", lambda: pickled(many(b"N", MAX_OPCODES))),
    "lists": (
        "TD4012",
        "80000000 bytes",
        lambda: pickled(b"](" + (b"(" + b"]" * 999 + b"t") * 500 + b"e"),
    ),
    "objects": (
        "TD4012",
        "50000 objects",
        lambda: pickled(b"ca\nb\nq\0" + many(b"h\0)R", MAX_CALLS + 500) + b"\x86"),
    ),
    "memo of 2**31": ("TD4012", "memo 2147483648", pickled(b"Nr" + struct.pack("<I", 2**31))),
    "bytearray of 2**33": ("TD4012", "0x96", pickled(b"\x96" + struct.pack("<Q", 2**33))),
    "text of 2**32": ("TD4012", "4294967295 bytes", pickled(b"X\xff\xff\xff\xff")),
    "emoji": ("TD4012", "80000000 bytes", lambda: pickled(text("\U0001f600" + "x" * 40_000_000))),
    "keys that collide": (
        "TD4012",
        "1000 keys",
        pickled(b"}(" + b"".join(whole(i * (2**61 - 1)) + b"N" for i in range(9000)) + b"u"),
    ),
    "a long key, again and again": (
        "TD4012",
        "key of str",
        pickled(b"}" + (text("k" * 10**6) + b"Ns") * 2),
    ),
    "ten to the power of twelve": (
        "TD4012",
        "shared ones counted",
        pickled(
            b"(Nq\0"
            + b"".join(b"(" + b"h%c" % i * 10 + b"tq%c" % (i + 1) for i in range(12))
            + b"t"
        ),
    ),
    "extension": ("TD4012", "0x82", pickled(b"\x82\1")),
    "inst": ("TD4012", "0x69", pickled(b"(" + text("true") + b"ios\nsystem\n")),
    "obj": ("TD4012", "0x6f", pickled(b"(cos\nsystem\n" + text("true") + b"o")),
    "persid": ("TD4012", "0x50", pickled(b"Pstorage\n")),
    # C23: safetensors
    "header over the file": ("TD4016", "the file 97", safetensors_file(length=10**6)),
    "header over 100 MB": (
        "TD4016",
        "4000000 are read",
        lambda: safetensors_file(b"{" + b" " * (100 * 2**20)),
    ),
    "header over 64 bits": ("TD4016", "the file 97", safetensors_file(length=2**64 - 1)),
    "header empty": ("TD4016", "begins with", safetensors_file(b"{", b"", 0)),
    "header cut": ("TD4016", "no JSON", safetensors_file(length=30)),
    "header not utf-8": ("TD4016", "not UTF-8", safetensors_file(b'{"\xff": 1}')),
    "header of lists": ("TD4016", "too deep", safetensors_file(b'{"a":' + b"[" * 100_000)),
    "header of many lists": (
        "TD4016",
        "1300002 lists",
        lambda: safetensors_file(b'{"a":[' + b"[]," * 1_300_000 + b"0]}"),
    ),
    "a number of 5000 digits": (
        "TD4016",
        "4300 digits",
        safetensors_file(b'{"w":' + b"9" * 5000 + b"}"),
    ),
    "key twice": (
        "TD4016",
        "called 'w'",
        safetensors_file(b'{"w":%b,"w":%b}' % ((json.dumps(entry()).encode(),) * 2)),
    ),
    "field twice": (
        "TD4016",
        "called 'dtype'",
        safetensors_file(b'{"w":{"dtype":"F32","dtype":"F32","shape":[6],"data_offsets":[0,24]}}'),
    ),
    "overlap": (
        "TD4016",
        "overlaps",
        safetensors_file({"w": entry(), "v": entry(shape=[1], offsets=(4, 8))}),
    ),
    "empty one inside": (
        "TD4016",
        "overlaps",
        safetensors_file({"w": entry(), "v": entry(shape=[0], offsets=(4, 4))}),
    ),
    "hole": ("TD4016", "hole", safetensors_file({"w": entry(offsets=(4, 28))}, SIX + bytes(4))),
    "bytes after": ("TD4016", "has 25", safetensors_file(numbers=SIX + b"\0")),
    "bytes missing": ("TD4016", "has 23", safetensors_file(numbers=SIX[:-1])),
    "wrong size for dtype": ("TD4016", "F64 in 24", safetensors_file({"w": entry("F64")})),
    "wrong shape": ("TD4016", "[2, 2] of F32", safetensors_file({"w": entry(shape=[2, 2])})),
    "unknown dtype": ("TD4016", "'F8_E4M3'", safetensors_file({"w": entry("F8_E4M3", [24])})),
    "dtype no text": ("TD4016", "dtype int", safetensors_file({"w": entry(7)})),
    "negative shape": (
        "TD4016",
        "no whole numbers",
        safetensors_file({"w": entry(shape=[-2, -3])}),
    ),
    "flag in shape": (
        "TD4016",
        "no whole numbers",
        safetensors_file({"w": entry(shape=[6, True])}),
    ),
    "float in shape": ("TD4016", "no whole numbers", safetensors_file({"w": entry(shape=[6.0])})),
    "three offsets": (
        "TD4016",
        "no whole numbers",
        safetensors_file({"w": entry(offsets=[0, 0, 24])}),
    ),
    "no offsets": (
        "TD4016",
        "other entries",
        safetensors_file({"w": {"dtype": "F32", "shape": [6]}}),
    ),
    "no object": ("TD4016", "other entries", safetensors_file({"w": 1})),
    "metadata no texts": (
        "TD4016",
        "no object of texts",
        safetensors_file({"w": entry(), "__metadata__": {"a": 1}}),
    ),
    "nine dimensions there": (
        "TD4016",
        "no whole numbers",
        safetensors_file({"w": entry(shape=[1] * 7 + [2, 3])}),
    ),
}


def made(name: str) -> bytes:
    file = FILES[name][2]
    return file if isinstance(file, bytes) else file()


@pytest.mark.parametrize("name", FILES)
def test_refused_with_its_code_within_a_second(name):
    code, words, _ = FILES[name]
    data = made(name)
    start = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        parse(data, "stranger.pt")
    assert time.process_time() - start < 1
    error = caught.value
    assert (error.code, error.where, error.exit_code) == (code, "stranger.pt", 4)
    lines = describe(error, "tadiff-export")
    assert words in error.message
    assert error.fix
    assert len(lines) < 1000
    assert "weights_only" not in lines


def test_nested_lists_are_refused_at_once():
    data = made("nested lists")
    start = time.process_time()
    with pytest.raises(ModelFileError, match="TD4012"):
        parse(data, "x")
    assert time.process_time() - start < 0.2  # 0.03 on an idle core


def empty_tensors() -> bytes:
    call = tensor((0,), (1,)).removesuffix(b"R").replace(b"_v2\n", b"_v2\nq\0") + b"q\1R"
    return pickled(call + many(b"h\0h\1R", MAX_CALLS - 500) + b"\x86", **{"0": SIX})


NEAR_LIMITS: dict[str, Callable[[], bytes]] = {  # as dear as a file that is read can be
    "numbers": lambda: pickled(many(b"G12345678", MAX_OPCODES - 2000)),
    "lists": lambda: pickled(many(b"]", 240_000)),
    "dicts": lambda: pickled(many(b"}K\1K\2s", 90_000)),
    "memo": lambda: pickled(
        b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(MAX_OPCODES - 3))
    ),
    "text": lambda: pickled(text("\U0001f600" + "x" * 19_900_000)),
    "texts": lambda: pickled(many(text("\u0100" + "x" * 390), 40_000)),
    "objects": lambda: pickled(b"ca\nb\nq\0" + many(b"h\0K\1\x85R", MAX_CALLS) + b"\x86"),
    "empty tensors": empty_tensors,
}


@pytest.mark.slow
def test_memory_stays_within_200_mb_of_the_file(tmp_path):
    """Peak of a process that reads the dearest files, over what it had before."""
    for name, make in NEAR_LIMITS.items():
        (tmp_path / name).write_bytes(make())
    code = (
        "import pathlib, re, sys; from tadiff_export.tensors import read_contents;"
        # ru_maxrss begins with that of the parent process
        "now = lambda field: int(re.search(field + r':\\s+(\\d+) kB', status.read_text())[1]);"
        "status = pathlib.Path('/proc/self/status'); before = now('VmRSS');"
        "any(not read_contents(pathlib.Path(name)) for name in sys.argv[1:]);"
        "print((now('VmHWM') - before) / 1e3)"
    )
    argv = [sys.executable, "-c", code, *(str(tmp_path / name) for name in NEAR_LIMITS)]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    largest_mb = max((tmp_path / name).stat().st_size for name in NEAR_LIMITS) / 1e6
    assert 80 < float(out.stdout) < 200 + largest_mb  # 80 by a text alone


def test_refused_tensors_cost_no_memory():
    """Sound up to its last opcode, the file describes 160 MB of tensors and gets none of them."""
    numbers = np.arange(10_000_000, dtype="<f4").tobytes()
    big = b"](" + tensor((10_000_000,), (1,), numel=10_000_000) * 3
    data = pickled(big + b"ca\nb\nK\1R" + b"e", **{"0": numbers})
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="TD4012"):
        parse(data, "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


PAYLOADS = {
    "os.system": lambda canary: payload(canary),
    "eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Call(open, str(canary), "w"),
    "subprocess.call": lambda canary: Call(subprocess.call, ["touch", str(canary)]),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", PAYLOADS)
def test_tensors_are_read_and_the_payload_is_not_run(name, protocol, tmp_path):
    """C04."""
    canary = tmp_path / "canary"
    bad = PAYLOADS[name](canary)
    contents = parse(saved({"w": W, "bad": bad, "hooks": [bad]}, protocol), "x")
    assert torch.equal(contents.root["w"], W)
    assert not canary.exists()
    (note,) = contents.notes
    assert note.startswith("ignored ")
    assert contents.root["bad"] is contents.root["hooks"][0]
    assert any(str(canary) in str(arg) for arg in contents.root["bad"].args)


def test_the_result_of_a_payload_cannot_be_called(tmp_path):
    canary = tmp_path / "canary"
    found = b"cbuiltins\ngetattr\n" + b"cos\n__builtins__\n" + text("system") + b"\x86R"
    data = pickled(b"}" + text("x") + found + text(f"touch {canary}") + b"\x85Rs")
    contents = parse(data, "x")
    assert not canary.exists()
    assert contents.notes == ("ignored 2 objects that are no tensors: builtins.getattr (2 times)",)


def test_paths_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    names = {"none.pt": "No such file", "": "directory", "fifo": "pipe", "a\0b": "not a file name"}
    for name, words in (names | {"x" * 5000: "name too long"}).items():
        with pytest.raises(ModelFileError, match=f"TD4001.*{words}"):
            read_contents(tmp_path / name)


def test_a_file_too_large_is_refused_by_its_size(tmp_path):
    path = tmp_path / "large.pt"
    path.touch()
    os.truncate(path, 2**32)  # sparse: takes no disk
    with pytest.raises(ModelFileError, match="TD4009"):
        read_contents(path)


def test_what_was_parsed_is_hashed(tmp_path):
    import hashlib

    path = tmp_path / "w.pt"
    path.write_bytes(saved({"w": W}))
    contents = read_contents(path)
    assert contents.format == "zip"
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sound_safetensors_are_read():
    tensors = {"a": W, "b": W.bfloat16(), "e": torch.zeros(0, 3), "k": torch.arange(4)}
    data = safetensors.torch.save(tensors, {"format": "pt"})
    for name in ("x", "x.safetensors"):
        contents = parse(data, name)
        assert contents.format == "safetensors"
        assert contents.root.keys() == tensors.keys()
        assert all(torch.equal(contents.root[k], v) for k, v in tensors.items())
    assert torch.equal(parse(safetensors_file(), "x").root["w"], W)  # the one the table breaks


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 30])
def test_cut_safetensors_are_called_so_by_their_name(length):
    data = safetensors_file()[:length]
    with pytest.raises(ModelFileError, match="TD4016" if length else "TD4001"):
        parse(data, "x.safetensors")


def test_mutants_run_nothing_and_end_in_a_type(tmp_path):
    result = fuzz_checkpoints.fuzz(3000, 20, tmp_path / "canary")
    assert result.executed == []
    assert result.untyped == []
    assert result.slowest_ms < 1000
    reached = {"read", "TD4004", "TD4005", "TD4009", "TD4010", "TD4011", "TD4012", "TD4016"}
    assert reached <= result.outcomes.keys()


def test_the_fuzzer_would_notice(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setattr(fuzz_checkpoints, "parse", lambda data, name: {}[name])
    with pytest.raises(KeyError):  # a seed must be read
        fuzz_checkpoints.fuzz(1, 0, canary)

    def careless(data: bytes, name: str) -> None:
        if name == "mutant":
            eval("open")  # what a reader that looks names up does

    monkeypatch.setattr(fuzz_checkpoints, "parse", careless)
    assert len(fuzz_checkpoints.fuzz(5, 0, canary).executed) == 5

    def fragile(data: bytes, name: str) -> None:
        if name == "mutant":
            raise RecursionError

    monkeypatch.setattr(fuzz_checkpoints, "parse", fragile)
    result = fuzz_checkpoints.fuzz(5, 0, canary)
    assert len(result.untyped) == 5
    assert not result.clean
