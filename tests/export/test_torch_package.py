"""Exported PyTorch programs: what they compute, and that loading one executes nothing else."""

import io
import json
import zipfile

import pytest
import torch

from tadiff_export.fuse import fuse
from tadiff_export.torch_package import denoiser_to_program
from tadiff_rt.errors import ModelFileError
from tadiff_rt.pt2_scan import EXAMPLES, MODEL, scan_program
from tadiff_train.checkpoint import load_checkpoint

SIZE = 32
WEIGHTS = "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def denoiser(checkpoint):
    return fuse(load_checkpoint(checkpoint)[0], torch.float32)


@pytest.fixture(scope="module")
def program(denoiser):
    return denoiser_to_program(denoiser, SIZE)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_program_is_the_denoiser(denoiser, program, rows):
    rng = torch.Generator().manual_seed(rows)
    shapes = [(rows, 9, SIZE, SIZE), (rows, 3, SIZE, SIZE), (1, sum(denoiser.widths))]
    feed = [torch.randn(shape, generator=rng) for shape in shapes]
    module = torch.export.load(io.BytesIO(program)).module()
    with torch.no_grad():
        for got, expected in zip(module(*feed), denoiser(*feed), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_the_same_network_gives_the_same_bytes(denoiser, program):
    assert denoiser_to_program(denoiser, SIZE) == program


def test_a_program_holds_no_paths_and_no_pickles(program):
    assert b"/tadiff" not in program
    assert b"site-packages" not in program
    assert b".py" not in program
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        for name in archive.namelist():
            # The opcodes that call something, behind the mark of a pickle.
            assert not archive.read(name).startswith(b"\x80")


def test_operators_are_counted(program):
    counts = scan_program(program, "p.pt2").operators
    assert counts["conv2d"] == 20
    assert counts["attention"] == 4


def changed(program, path, change):
    """The archive with one entry replaced; None removes it, a new path adds one."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as archive, zipfile.ZipFile(out, "w") as kept:
        top = archive.namelist()[0].partition("/")[0]
        names = {name: archive.read(name) for name in archive.namelist()}
        content = change(names.get(f"{top}/{path}"))
        names.pop(f"{top}/{path}", None)
        if content is not None:
            names[f"{top}/{path}"] = content
        for name, data in names.items():
            kept.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def edited(program, path, edit):
    def change(content):
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    return changed(program, path, change)


def first_node(document):
    return document["graph_module"]["graph"]["nodes"][0]


def set_target(target):
    return lambda document: first_node(document).update(target=target)


def set_guard(code):
    return lambda document: document["guards_code"].append(code)


def set_expression(expression):
    value = {"as_expr": {"expr_str": expression, "hint": None}}
    return lambda document: document["graph_module"]["graph"].update(sym_int_values={"s0": value})


def pickled(document):
    next(iter(document["config"].values()))["use_pickle"] = True


def elsewhere(document):
    next(iter(document["config"].values()))["path_name"] = "../../secret"


HOSTILE = {
    "an operator of another library": lambda p: edited(p, MODEL, set_target("torch.ops.x.y")),
    "a function of torch": lambda p: edited(p, MODEL, set_target("torch.hub.load")),
    "a function of operator": lambda p: edited(p, MODEL, set_target("_operator.methodcaller")),
    "a registered extension": lambda p: edited(p, MODEL, set_target("#ext:thing")),
    "a guard that calls": lambda p: edited(p, MODEL, set_guard("__import__('os').system('x')")),
    "a guard behind a guard": lambda p: edited(
        p, MODEL, set_guard("L['x_t'].size()[0] == 1 or exit()")
    ),
    "a guard that reads attributes": lambda p: edited(p, MODEL, set_guard("L.keys.__self__")),
    "an expression that calls": lambda p: edited(
        p, MODEL, set_expression("__import__('os').system('true')")
    ),
    "an expression of endless digits": lambda p: edited(p, MODEL, set_expression("1e30000000")),
    "an expression of more digits than sizes": lambda p: edited(
        p, MODEL, set_expression("1234567890")
    ),
    "an expression that reads attributes": lambda p: edited(
        p, MODEL, set_expression("E.free_symbols")
    ),
    "an expression that is a name": lambda p: edited(p, MODEL, set_expression("E")),
    "an expression in a list": lambda p: edited(p, MODEL, set_expression(["1e30000000"])),
    "an expression in an object": lambda p: edited(p, MODEL, set_expression({"x": "1e30000000"})),
    "a key that is code": lambda p: edited(
        p, MODEL, lambda d: d["range_constraints"].update({"exit()": {}})
    ),
    "a nested graph": lambda p: edited(
        p, MODEL, lambda d: first_node(d)["inputs"].append({"arg": {"as_graph": {}}})
    ),
    "a tree of other classes": lambda p: edited(
        p,
        MODEL,
        lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "os.system", "context": "null", "children_spec": []}]'
        ),
    ),
    "example inputs": lambda p: changed(p, EXAMPLES, lambda old: b"\x80\x02."),
    "pickled weights": lambda p: edited(p, WEIGHTS, pickled),
    "weights elsewhere": lambda p: edited(p, WEIGHTS, elsewhere),
    "a shared library": lambda p: changed(
        p, "data/aotinductor/model/x.so", lambda old: b"\x7fELF"
    ),
    "an object": lambda p: changed(p, "data/constants/custom_obj_0", lambda old: b"\x80\x02."),
    "an extra file": lambda p: changed(p, "extra/note.txt", lambda old: b"hello"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_loading_would_execute_is_refused(program, name):
    with pytest.raises(ModelFileError) as e:
        scan_program(HOSTILE[name](program), "p.pt2")
    assert e.value.code == "TD4105"


@pytest.mark.parametrize(
    "expression",
    [
        "7",
        "Symbol('s29', positive=True, integer=True)",
        "Mul(Integer(36864), Symbol('s29', positive=True, integer=True))",
        "Mul(Integer(268435456), Symbol('s29', positive=True, integer=True))",
    ],
)
def test_expressions_of_sizes_are_not_refused(program, expression):
    assert scan_program(edited(program, MODEL, set_expression(expression)), "p.pt2").operators


def test_a_program_for_images_of_192_is_not_refused(denoiser):
    """It holds products of the number of rows with 36,864 pixels."""
    assert scan_program(denoiser_to_program(denoiser, 192), "p.pt2").operators["attention"] == 4


def test_a_program_of_an_earlier_version_says_what_to_do(program):
    """Before attention was an operator of its own, programs held softmax and matmul."""
    old = edited(program, MODEL, set_target("torch.ops.aten.softmax.int"))
    with pytest.raises(ModelFileError, match=r"softmax\.int") as e:
        scan_program(old, "p.pt2")
    assert "export the checkpoint again" in e.value.fix
    assert "tadiff-export CKPT --target torch" in e.value.fix


BROKEN = {
    "empty": lambda p: b"",
    "text": lambda p: b"<html>not found</html>",
    "truncated": lambda p: p[: len(p) // 2],
    "no program": lambda p: changed(p, MODEL, lambda old: None),
    "no example entry": lambda p: changed(p, EXAMPLES, lambda old: None),
    "not JSON": lambda p: changed(p, MODEL, lambda old: b"{"),
    "deep JSON": lambda p: changed(p, MODEL, lambda old: b"[" * 100_000),
    "a list": lambda p: changed(p, MODEL, lambda old: b"[]"),
    "weights that are no table": lambda p: changed(p, WEIGHTS, lambda old: b"{}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_program_is_refused(program, name):
    with pytest.raises(ModelFileError) as e:
        scan_program(BROKEN[name](program), "p.pt2")
    assert e.value.code == "TD4104"


def test_no_value_is_tied_to_the_device_of_the_export(denoiser, program):
    """On another device, here one without numbers, it still runs."""
    module = torch.export.load(io.BytesIO(program)).module().to("meta")
    shapes = [(2, 9, SIZE, SIZE), (2, 3, SIZE, SIZE), (1, sum(denoiser.widths))]
    eps, logits = module(*(torch.zeros(shape, device="meta") for shape in shapes))
    assert (eps.shape, logits.shape) == ((2, 3, SIZE, SIZE), (2, 4, SIZE, SIZE))


def test_only_what_was_judged_is_loaded(program):
    """Two directories in one file: zipfile takes that before the end record, torch the stated."""
    other = changed(program, EXAMPLES, lambda old: b"\x80\x02N.")
    both = other[:-22] + program  # the second archive's offsets are those of the file's beginning
    judged = scan_program(both, "p.pt2")
    assert judged.operators == scan_program(program, "p.pt2").operators
    with zipfile.ZipFile(io.BytesIO(judged.data)) as archive:
        assert archive.infolist()[0].header_offset == 0
        assert not any(archive.read(n) for n in archive.namelist() if n.endswith(EXAMPLES))
    assert b"\x80\x02N." not in judged.data
    torch.export.load(io.BytesIO(judged.data))


def test_an_entry_that_lies_beyond_any_file_is_refused(program):
    """zipfile overflows on offsets of zip64 records above 2^63."""
    data = bytearray(program)
    at = data.rfind(b"PK\x01\x02")
    data[at + 42 : at + 46] = b"\xff\xff\xff\xff"
    with pytest.raises(ModelFileError):
        scan_program(bytes(data), "p.pt2")


def test_compressed_entries_are_refused(program):
    out = io.BytesIO()
    archive = zipfile.ZipFile(io.BytesIO(program))
    with archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as kept:
        for name in archive.namelist():
            kept.writestr(name, archive.read(name))
    with pytest.raises(ModelFileError, match="entry") as e:
        scan_program(out.getvalue(), "p.pt2")
    assert e.value.code == "TD4105"


def test_changed_bytes_never_end_in_another_error(program):
    """Bit flips and cuts: accepted (weights are not looked at; hashes are for that) or refused."""
    rng = torch.Generator().manual_seed(1)
    refused = 0
    for _ in range(300):
        data = bytearray(program)
        for _ in range(3):
            at = int(torch.randint(len(data), (1,), generator=rng))
            near_the_end = int(torch.randint(4000, (1,), generator=rng)) + 1
            data[at] ^= 1 << (at % 8)
            data[-near_the_end] ^= 1 << (near_the_end % 8)
        try:
            scan_program(bytes(data), "p.pt2")
        except ModelFileError:
            refused += 1
    assert refused > 200
