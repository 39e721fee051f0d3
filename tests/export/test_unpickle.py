"""The reader's own stack machine: what torch.save writes comes back, and nothing is looked up."""

import argparse
import collections
import fractions
import math
import pickletools
import re
import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tadiff_export.opcodes import OPCODES, scan
from tadiff_export.plain import MAX_DEPTH, Inert, Symbol
from tadiff_export.tensors import as_mapping, parse
from tadiff_rt.errors import ModelFileError
from tests.export.crafted import (
    Call,
    lightning,
    members,
    one_tensor,
    saved,
    tensor,
    text,
    whole,
    zipped,
)

PROTOCOLS = (2, 3, 4, 5)
W = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))


def read(value: object, protocol: int = 2) -> Any:
    return parse(saved(value, protocol), "x").root


def code_of(pickle: bytes, **storages: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        parse(zipped(pickle, storages), "x")
    return caught.value.code


def same(a: Any, b: Any) -> bool:
    """Equal types and values all the way down; NaN is NaN, 0 is not -0."""
    if isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == bits(b)
    if isinstance(b, dict):
        return type(a) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, list | tuple):
        sound = isinstance(a, list) == isinstance(b, list) and len(a) == len(b)
        return sound and all(map(same, a, b))
    if isinstance(b, float):
        return type(a) is float and (math.isnan(a) if b != b else (repr(a) == repr(b)))
    return type(a) is type(b) and a == b


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def test_the_opcodes_are_those_of_torch():
    """Everything torch.save emits for these values, but BYTEARRAY8 of a bytearray."""
    shared = [f"name {i}" for i in range(300)]
    long = {"t": "x" * 300, "b": b"y" * 300, "n": [10**9, 10**30, 70_000, -1, 300, 2.5]}
    values = [
        {"w": W, "od": collections.OrderedDict(a=(1, 2), b=(1, 2, 3, 4)), "none": None},
        {"again": [shared, shared[:], set(shared), frozenset(shared)], **long},
        {"ns": argparse.Namespace(a=True, b=False), "f": fractions.Fraction(1, 3), "e": ()},
        {"ba": bytearray(b"z"), "np": np.float32(1), "one": [(1,)], "d": {1: {2: 3}}},
    ]
    emitted = set()
    for protocol in PROTOCOLS:
        for value in values:
            (pickle,) = [v for k, v in members(saved(value, protocol)).items() if "pkl" in k]
            emitted |= {opcode.name for opcode, _, _ in pickletools.genops(pickle)}
    assert {opcode.name for opcode in OPCODES.values()} == emitted - {"BYTEARRAY8"}


def test_the_table_of_opcodes_agrees_with_python():
    """Arguments and effects on the stack, against Python's own documentation of them."""
    theirs = {opcode.code.encode("latin1")[0]: opcode for opcode in pickletools.opcodes}
    sizes = {"PROTO": 1, "FRAME": 8, "BININT": 4, "BININT1": 1, "BININT2": 2, "BINFLOAT": 8}
    sizes |= {"LONG1": 1, "BINPUT": 1, "LONG_BINPUT": 4, "BINGET": 1, "LONG_BINGET": 4}
    sizes |= {"BINUNICODE": 4, "SHORT_BINUNICODE": 1, "BINBYTES": 4, "SHORT_BINBYTES": 1}
    for code, ours in OPCODES.items():
        other = theirs[code]
        assert (ours.name, ours.size) == (other.name, sizes.get(ours.name, 0))
        hidden = (pickletools.markobject, pickletools.stackslice)
        assert ours.mark == (pickletools.markobject in other.stack_before)
        before, after = (
            sum(value not in hidden for value in side)
            for side in (other.stack_before, other.stack_after)
        )
        assert ours.pushes - ours.pops == after - before, ours


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_round_trip_of_plain_values(protocol):
    value = {
        "text": ["", "é", "\U0001f600", "x" * 300, "a\nb"],
        "numbers": [0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**63, -(10**30), True],
        "floats": [0.0, -0.0, 1e-310, math.inf, math.nan, 2.5],
        "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {}], 7: None},
        "keys": {-1: 0, 1.5: 1, None: 2, True: 3, ("a", 1): 4, b"k".decode(): 5, 2**70: 6},
        "many": {f"k{i}": i for i in range(2500)},
    }
    assert same(read(value, protocol), value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(plain, st.sampled_from(PROTOCOLS))
def test_round_trip_of_any_value(value, protocol):
    assert same(read(value, protocol), value)


def test_numbers_of_numpy_are_plain_numbers():
    value = {
        "f8": np.float64(-2.5),
        "f4": np.float32(0.1),
        "i8": np.int64(-(2**40)),
        "i4": np.int32(-7),
        "b": np.bool_(True),
    }
    for protocol in PROTOCOLS:
        assert same(read(value, protocol), {k: v.item() for k, v in value.items()})
    pickle = members(saved(value))["archive/data.pkl"]
    older = pickle.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert older != pickle
    assert parse(zipped(older), "x").root == read(value)


@pytest.mark.parametrize("dtype", ["<i2", "<u8", "<c8", ">f8"])
def test_other_numbers_of_numpy_stay_inert(dtype):
    """Those whose bytes are read otherwise than little-endian floats and integers."""
    value = np.dtype(dtype).type(1) if dtype != ">f8" else None
    data = saved([value])
    if value is None:
        pickle = members(saved([np.float64(1)]))["archive/data.pkl"]
        data = zipped(pickle.replace(text("<"), text(">")))
    (found,) = parse(data, "x").root
    assert found.name == "numpy._core.multiarray.scalar"


TENSORS = {
    "float": W,
    "double": W.double() / 3,
    "half": W.half(),
    "bfloat16": W.bfloat16(),
    "int64": torch.tensor([[2**62, -1]]),
    "int32": torch.tensor([-(2**31)], dtype=torch.int32),
    "int16": torch.tensor([-7, 300], dtype=torch.int16),
    "int8": torch.tensor([-7, 7], dtype=torch.int8),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": W > 0,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "transposed": W.T,
    "slice": W[1:3, ::2],
    "expanded": W[:1].expand(4, 3),
    "parameter": torch.nn.Parameter(W),
    "eight dimensions": W.reshape(1, 4, 1, 3, 1, 1, 1, 1),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_round_trip_of_tensors(protocol):
    found = read(TENSORS, protocol)
    for name, expected in TENSORS.items():
        got = found[name]
        assert type(got) is torch.Tensor, name
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
        assert got.is_contiguous(), name
        assert not got.requires_grad, name
        assert torch.equal(got, expected), name


def test_tied_tensors_get_memory_of_their_own():
    found = read({"a": W, "b": W.detach(), "c": W.view(-1)[2:5]})
    found["a"].zero_()
    assert torch.equal(found["b"], W)
    assert torch.equal(found["c"], W.view(-1)[2:5])
    assert found["c"].untyped_storage().nbytes() == 3 * 4


def test_the_file_is_not_kept_by_its_tensors():
    data = bytearray(saved({"w": W}))
    found = parse(bytes(data), "x").root["w"]
    found += 1  # a view of the file would be read-only, or change it
    assert torch.equal(parse(bytes(data), "x").root["w"], W)


numbers = st.integers(0, 7)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), numbers), max_size=3), numbers)
def test_geometry_against_every_index(dims, offset):
    """Read as torch reads it if all elements lie among the six numbers; refused otherwise."""
    size, stride = tuple(n for n, _ in dims), tuple(step for _, step in dims)
    index = np.full(size, offset)
    for axis, step in enumerate(stride):
        index += np.expand_dims(np.arange(size[axis]) * step, list(range(1, len(size) - axis)))
    fits = offset <= 6 if index.size == 0 else index.max() < 6
    data = one_tensor(size, stride, offset)
    if not fits:
        with pytest.raises(ModelFileError, match="TD4010"):
            parse(data, "x")
    else:
        assert parse(data, "x").root["w"].tolist() == index.astype(float).tolist()


def test_a_bool_is_zero_or_one():
    pickle = (
        b"\x80\2}" + text("w") + tensor((4,), (1,), numel=4, kind="torch\nBoolStorage") + b"s."
    )
    found = parse(zipped(pickle, {"0": b"\0\1\2\xff"}), "x").root["w"]
    assert found.view(torch.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lightning_with_munch_namespace_and_numpy(protocol):
    """C08, which torch.load(weights_only=True) refuses."""
    contents = parse(lightning({"_model.w": W, "_model.b": W[0]}, protocol), "x")
    assert "munch" not in sys.modules
    root = contents.root
    assert torch.equal(root["state_dict"]["_model.w"], W)
    hyper = root["hyper_parameters"]
    assert hyper["config"].name == "munch.DefaultMunch"
    config = as_mapping(hyper["config"])
    assert (config["num_heads"], config["max_T"], config["lr"]) == (4, 1000, 2.5e-4)
    assert as_mapping(config["model"]) == {"mc": 32}
    assert as_mapping(hyper["args"]) == {"seed": -3}
    assert as_mapping(root) is root
    assert contents.notes == (
        "read as plain data: munch.DefaultMunch (2 times), argparse.Namespace",
    )


def test_a_whole_module_is_a_record():
    """C06: the layer above finds no state dict in it, but nothing was built."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    found = read(net)
    assert found.name == "torch.nn.modules.container.Sequential"
    linear = as_mapping(found)["_modules"]["0"]
    assert torch.equal(as_mapping(linear)["_parameters"]["weight"], net[0].weight)


def test_objects_are_records_of_what_they_would_be():
    value = {
        "default": collections.defaultdict(list, {"a": [1]}),
        "set": {1},
        "call": Call(fractions.Fraction, 1, 3),
        "type": torch.float32,
    }
    found = read(value, 4)
    assert as_mapping(found["default"]) == {"a": [1]}
    assert (found["set"].name, found["set"].elements) == ("builtins.set", [1])
    assert (found["call"].name, found["call"].args) == ("fractions.Fraction", (1, 3))
    assert as_mapping(found["call"]) is None
    assert found["type"] == Symbol("torch", "float32")
    assert "<" not in repr(found["call"])


def test_notes_say_what_was_ignored():
    calls = [Call(eval, "1")] * 2 + [Call(getattr, 1, f"a{i}") for i in range(3)]
    kinds = [Call(f, "x") for f in (len, iter, hash, vars, compile)]
    (note,) = parse(saved([*calls, *kinds], 4), "x").notes
    assert note.startswith("ignored 9 objects that are no tensors: builtins.getattr (3 times)")
    assert note.endswith("and 2 more")
    ((note,)) = parse(zipped(b"\x80\2cos\n\x1b[2Jsystem\n)R."), "x").notes
    assert note == r"ignored 1 object that is no tensor: os.\x1b[2Jsystem"


def test_sharing_is_kept_and_bounded():
    shared = [1, 2]
    found = read([shared, shared])
    assert found[0] is found[1]
    layers: list[Any] = []
    for _ in range(9):
        layers = [layers] * 10  # 10 ** 9 lists to whoever walks them
    assert code_of(members(saved(layers))["archive/data.pkl"]) == "TD4012"
    assert read([[[1] * 5] * 5] * 5) == [[[1] * 5] * 5] * 5


def test_depth_is_bounded_and_cycles_are_refused():
    def nested(depth: int) -> bytes:
        return b"\x80\2N" + b"\x85" * depth + b"."

    assert parse(zipped(nested(MAX_DEPTH)), "x").root
    assert code_of(nested(MAX_DEPTH + 1)) == "TD4012"
    # A shared part is as deep as the deepest place where it stands.
    half = b"\x80\2N" + b"\x85" * (MAX_DEPTH // 2) + b"q\0"
    more = b"\x85" * (MAX_DEPTH // 2 - 1)
    assert parse(zipped(half + more + b"h\0\x86."), "x").root
    assert code_of(half + more + b"\x85" + b"h\0\x86.") == "TD4012"
    cycle: list[Any] = []
    cycle.append({"a": (cycle,)})
    assert code_of(members(saved(cycle, 2))["archive/data.pkl"]) == "TD4012"
    through = b"\x80\2ca\nb\n)\x81q\0}" + text("k") + b"h\0sb."  # an object's state
    assert code_of(through) == "TD4012"


MALFORMED = {
    "no stop": b"\x80\2N",
    "nothing left": b"\x80\2.",
    "two left": b"\x80\2NN.",
    "mark left": b"\x80\2(N.",
    "bytes after stop": b"\x80\2N.N",
    "underflow": b"\x80\2\x86.",
    "under a mark": b"\x80\2N(\x85t.",
    "tuple without mark": b"\x80\2Nt.",
    "mark into memo": b"\x80\2(q\0t.",
    "append to nothing": b"\x80\2(NaNt.",
    "set on nothing": b"\x80\2(NNsNt.",
    "state of nothing": b"\x80\2(NbNt.",
    "memo not set": b"\x80\2h\0.",
    "memo set later": b"\x80\2Nh\1\x86q\1.",
    "protocol 1": b"\x80\1N.",
    "protocol 6": b"\x80\6N.",
    "protocol twice": b"\x80\2\x80\2N.",
    "cut in argument": b"\x80\2J\1\2",
    "text too long": b"\x80\2X\xff\0\0\0a.",
    "text not utf-8": b"\x80\2X\1\0\0\0\xff.",
    "name not utf-8": b"\x80\2c\xff\nb\n.",
    "name without end": b"\x80\2cos\nsystem.",
    "name too long": b"\x80\2c" + b"x" * 300 + b"\nb\n.",
    "name of no text": b"\x80\4NN\x93.",
    "frame too long": b"\x80\4\x95\xff\0\0\0\0\0\0\0N.",
    "call of a number": b"\x80\2K\1)R.",
    "call without tuple": b"\x80\2ca\nb\nNR.",
    "object of a number": b"\x80\2K\1)\x81.",
    "append to a tuple": b"\x80\2)Na.",
    "append to a dict": b"\x80\2}(NNe.",
    "set on a list": b"\x80\2]NNs.",
    "key without value": b"\x80\2}(Nu.",
    "key of a list": b"\x80\2}]Ns.",
    "key of tuples in tuples": b"\x80\2})\x85\x85Ns.",
    "state of a list": b"\x80\2]}b.",
    "state of a tensor": b"\x80\2" + tensor((2,), (1,)) + b"}b.",
    "elements of a symbol": b"\x80\2ca\nb\nNa.",
    "storage of no tuple": b"\x80\2" + text("0") + b"Q.",
    "storage of two": b"\x80\2" + text("storage") + text("0") + b"\x86Q.",
    "storage without class": b"\x80\2(" + 4 * text("storage") + b"K\1tQ.",
    "another kind of id": b"\x80\2("
    + text("module")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\6tQ.",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_pickles(case):
    assert code_of(MALFORMED[case], **{"0": bytes(24)}) == "TD4012"


@pytest.mark.parametrize("case", ["name without end", "name too long"])
def test_names_are_short_lines(case):
    with pytest.raises(ModelFileError, match="a name of more than 200 bytes, or without an end"):
        parse(zipped(MALFORMED[case]), "x")


def test_the_malformed_ones_are_nearly_sound():
    """What each of them breaks is allowed where it belongs."""
    for pickle in (b"\x80\2N.", b"\x80\2(NNt.", b"\x80\2]Na.", b"\x80\2}NNs.", b"N."):
        assert scan(pickle, 0, len(pickle), "x")
        parse(zipped(pickle), "x")


@pytest.mark.parametrize("code", sorted(set(range(256)) - set(OPCODES)))
def test_no_other_opcode_is_run(code):
    """EXT, INST, OBJ, PERSID, NEWOBJ_EX, POP, DUP, lengths of 8 bytes, and what is no opcode."""
    pickle = b"\x80\2(N" + bytes([code]) + b"os\nsystem\n\0\0\0\0\0\0\0\0."
    with pytest.raises(ModelFileError, match=re.escape(f"0x{code:02x}")) as caught:
        parse(zipped(pickle), "x")
    assert caught.value.code == "TD4012"


def test_few_keys_may_be_chosen_to_collide():
    def keys(count: int, step: int) -> bytes:
        pairs = b"".join(whole(3 + i * step) + b"N" for i in range(count))
        return b"\x80\2}(" + pairs + b"u."

    assert len(parse(zipped(keys(5000, 1)), "x").root) == 5000  # as an optimiser numbers its state
    assert len(parse(zipped(keys(900, 2**61 - 1)), "x").root) == 900
    assert code_of(keys(1100, 2**61 - 1)) == "TD4012"
    assert code_of(b"\x80\2}" + text("k" * 2000) + b"Ns.") == "TD4012"


def test_inert_objects_compare_by_identity():
    assert Inert("a") != Inert("a")
