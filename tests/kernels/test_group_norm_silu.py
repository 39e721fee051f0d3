"""Fused group norm against float64, its strides and its arguments.

On a GPU the kernels compile and run; elsewhere conftest.py turns on Triton's interpreter, so index
arithmetic, masks and dtypes are still exercised, on small shapes.
"""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tadiff_kernels import group_norm_silu_triton
from tadiff_kernels.accuracy import error_budget
from tadiff_kernels.ahead import Variant, check_against, compile_variants
from tadiff_kernels.group_norm_silu import _check, _empty_result, group_norm_silu
from tadiff_kernels.group_norm_silu import group_norm_silu_reference as reference
from tadiff_kernels.group_norm_silu_triton import (
    PART_WARPS,
    WHOLE_WARPS,
    _normalise,
    _statistics,
    _whole,
    cut,
    launch,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.channels_last, torch.contiguous_format]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAST, FIRST = FORMATS
TINY = (3, 4, 5, 7, 5, 3)  # b, c1, c2, h, w, groups: odd, and a group of both x and skip
SPLIT = (1, 14, 10, 40, 40, 8)  # channels_last: four parts of two blocks of channels
LONG = (1, 2, 1, 96, 192, 3)  # contiguous: three parts
INSTANCE = (1, 32, 0, 4, 4, 32)  # one channel a group
CASES = [
    *((shape, form, dtype) for shape in (TINY, SPLIT) for form in FORMATS for dtype in DTYPES),
    (LONG, FIRST, torch.float32),
    (INSTANCE, LAST, torch.bfloat16),
    (INSTANCE, FIRST, torch.float16),
    ((1, 3, 4, 1, 1, 7), LAST, torch.float32),  # one value a group
    ((1, 1, 20, 23, 1, 7), LAST, torch.float16),  # groups in two blocks; sizes of 1
    ((1, 1, 5, 1, 9, 2), FIRST, torch.float32),
    ((1, 130, 0, 3, 3, 1), LAST, torch.float32),  # more partials than a program should merge
    ((2, 10, 14, 5, 3, 3), LAST, torch.float16),  # one launch, the last program half empty
    ((1, 50, 46, 3, 3, 2), LAST, torch.float32),  # one launch, a group of no power of two
]
# Elements beyond an image are normalised too, though never written.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def make_inputs(shape, dtype=torch.float32, form=torch.channels_last, mean=0.0, device=DEVICE):
    b, c1, c2, h, w, groups = shape
    rng = torch.Generator().manual_seed(5)

    def normal(*size, dtype=torch.float32):
        return torch.randn(size, generator=rng, dtype=torch.float64).to(device, dtype)

    halves = [
        # Not .contiguous(): of what is contiguous already, that keeps the strides.
        torch.empty(b, c, h, w, dtype=dtype, device=device, memory_format=form).copy_(
            normal(b, c, h, w, dtype=torch.float64) + mean
        )
        for c in (c1, c2)
    ]
    # Never ones and zeros: those hide a wrong channel index.
    shift, (weight, bias) = normal(b, c1 + c2), normal(2, c1 + c2)
    return [halves[0], halves[1] if c2 else None, shift, weight, bias, groups, 1e-5, True]


def run(*args):
    """What `launch` writes over NaN; the samples before and after must stay NaN."""
    x, skip, *_ = args
    expected = _empty_result(x, skip)
    b, *rest = expected.shape
    form = torch.contiguous_format if expected.is_contiguous() else torch.channels_last
    memory = torch.empty(b + 2, *rest, dtype=x.dtype, device=x.device).to(memory_format=form)
    memory.fill_(float("nan"))
    launch(*args, memory[1:-1])
    assert memory[0].isnan().all()
    assert memory[-1].isnan().all()
    return memory[1:-1]


@pytest.mark.parametrize(("shape", "form", "dtype"), CASES)
def test_matches_reference(shape, form, dtype):
    args = make_inputs(shape, dtype, form)
    error_budget(reference, *args).check(run(*args))


@pytest.mark.parametrize(("shape", "form"), [(SPLIT, LAST), (LONG, FIRST)])
def test_a_part_may_be_of_several_chunks(shape, form, monkeypatch):
    monkeypatch.setattr(group_norm_silu_triton, "PROGRAMS", 1)
    monkeypatch.setattr(group_norm_silu_triton, "WHOLE", 0)
    monkeypatch.setattr(group_norm_silu_triton, "PART", 4096)
    args = make_inputs(shape, form=form, mean=30.0)
    error_budget(reference, *args).check(run(*args))


def test_small_contiguous_images_in_two_launches(monkeypatch):
    monkeypatch.setattr(group_norm_silu_triton, "WHOLE", 0)
    args = make_inputs(TINY, form=FIRST)
    error_budget(reference, *args).check(run(*args))


@pytest.mark.parametrize("form", FORMATS)
def test_survives_a_large_mean(form):
    """mean² / var = 10⁶: E[x²] - mean² keeps no digit in fp32."""
    args = make_inputs(SPLIT, form=form, mean=1000.0)
    error_budget(reference, *args).check(run(*args))


@pytest.mark.parametrize("side", [4, 40])  # one launch, two launches
def test_a_shift_that_cancels_costs_no_digits(side):
    """One channel a group: its shift is subtracted again, and must not have rounded x."""
    x, _, shift, *rest = make_inputs((1, 32, 0, side, side, 32))
    assert torch.equal(run(x, None, shift + 1000, *rest), run(x, None, None, *rest))


@pytest.mark.parametrize("form", FORMATS)
def test_a_constant_channel_becomes_its_bias(form):
    x, _, _, weight, bias, *_ = make_inputs((1, 5, 0, 40, 40, 5), form=form)
    x.copy_(torch.tensor([1234.567, -0.1, 0.0, 3e-5, 7e8])[:, None, None])
    y = run(x, None, None, weight, bias, 5, 1e-5, False)
    assert torch.equal(y, bias[:, None, None].expand_as(y))


def test_squares_may_exceed_half_precision():
    x, skip, *rest = make_inputs(TINY, torch.float16)
    x, skip = (57000 + 2500 * t.clamp(-3, 3) for t in (x, skip))
    args = [x, skip, *rest]
    error_budget(reference, *args).check(run(*args))


@pytest.mark.parametrize("without", [("skip",), ("shift",), ("skip", "shift"), ("silu",)])
def test_parts_can_be_left_out(without):
    x, skip, shift, weight, bias, groups, eps, silu = make_inputs(TINY)
    if "skip" in without:
        x, skip = torch.cat([x, skip], 1), None
    shift, silu = None if "shift" in without else shift, "silu" not in without
    args = [x, skip, shift, weight, bias, groups, eps, silu]
    error_budget(reference, *args).check(run(*args))


def test_shift_may_be_one_row_or_a_part_of_a_table():
    x, skip, shift, *rest = make_inputs(TINY)
    table = torch.full((3, 20), float("nan"), device=DEVICE)
    table[:, 7:16] = shift
    assert torch.equal(run(x, skip, table[:, 7:16], *rest), run(x, skip, shift, *rest))
    one = run(x, skip, table[1:2, 7:16], *rest)
    assert torch.equal(one, run(x, skip, shift[1:2].expand(3, 9).contiguous(), *rest))


@pytest.mark.parametrize("shape", [SPLIT, INSTANCE])
def test_same_bits_whatever_the_other_samples_and_inputs_stay(shape):
    args = make_inputs((3, *shape[1:]))
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args[:5]]
    y = run(*args)
    for a, b in zip(args, before, strict=False):
        assert a is b or torch.equal(a, b)
    for t in args[:3]:
        if t is not None:
            t[0], t[2] = 1e6, float("nan")
    assert torch.equal(run(*args)[1], y[1])


def test_offsets_pass_2_to_the_31():
    """The third sample begins at element 2^31; only 8 positions of each are ever touched."""
    c, p, span = 16, 2**26, 8
    n = span * c
    memory = torch.empty(2**31 + n, dtype=torch.float16, device=DEVICE)
    rng = torch.Generator().manual_seed(5)
    weight, bias, *x = torch.randn(10, n, generator=rng).to(DEVICE)[:5]
    blocks = {"CHANNELS_LAST": True, "BLOCK_P": span, "BLOCK_C": c}

    def normalise(programs, x, y):
        mean, m2 = torch.empty(2, programs, c, device=DEVICE)
        _statistics[(programs,)](x, None, mean, m2, c, c, p, 1, span, **blocks)
        tensors = (x, None, None, 0, weight, bias, mean, m2, y)
        options = {"EPS": 1e-9, "SILU": False, "BLOCK_R": 1, **blocks}
        _normalise[(programs,)](*tensors, c, c, p, 1, 1, span, **options)

    expected = [torch.empty(n, dtype=torch.float16, device=DEVICE) for _ in x]
    for i, values in enumerate(x):
        memory[i * 2**30 :][:n] = values
        normalise(1, memory[i * 2**30 :][:n].clone(), expected[i])
    assert not torch.equal(expected[0], expected[2])
    normalise(3, memory, memory)
    for i, values in enumerate(expected):
        assert torch.equal(memory[i * 2**30 :][:n], values)


def test_the_cut_fills_a_gpu_and_bounds_what_is_merged():
    for channels_last in (True, False):
        for c, side in [(32, 192), (64, 192), (96, 192), (128, 96), (160, 96)]:
            _, block_c, splits, _ = cut(1, c, side**2, c // 32, channels_last)
            assert 132 <= splits * -(-c // block_c) <= 4 * 132
    for b, c, side in [(1, 32, 192), (40, 32, 192), (40, 224, 48), (1, 1024, 48)]:
        block_p, _, splits, span = cut(b, c, side**2, c // 32, True)
        assert span % block_p == 0
        assert (splits - 1) * span < side**2 <= splits * span
        assert splits * c // 32 <= 128
    assert cut(40, 32, 192**2, 1, True)[2] < cut(1, 32, 192**2, 1, True)[2]


def test_the_reference_is_the_definition():
    x, skip, shift, weight, bias, *rest = (
        a.double() if isinstance(a, torch.Tensor) else a for a in make_inputs(TINY, device="cpu")
    )
    h = torch.cat([x, skip], 1) + shift[:, :, None, None]
    for group in range(3):
        part = h[:, 3 * group : 3 * group + 3]
        mean = part.mean((1, 2, 3), keepdim=True)
        part[:] = (part - mean) / (
            (part - mean).pow(2).mean((1, 2, 3), keepdim=True) + 1e-5
        ).sqrt()
    h = h * weight[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(
        reference(x, skip, shift, weight, bias, *rest), h / (1 + torch.exp(-h)), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_cpu_implementation_rounds_half_precision_once(dtype):
    x, skip, *rest = make_inputs(TINY, dtype, device="cpu")
    wide = group_norm_silu(x.float(), skip.float(), *rest)
    assert torch.equal(group_norm_silu(x, skip, *rest), wide.to(dtype))


def test_the_cpu_implementation_survives_a_large_mean_in_channels_last():
    last, first = (make_inputs(SPLIT, form=f, mean=1000.0, device="cpu") for f in FORMATS)
    error_budget(reference, *first).check(group_norm_silu(*last))


@pytest.mark.parametrize(
    ("shape", "strides", "c2", "form", "expected"),
    [
        ((2, 3, 4, 5), (60, 20, 5, 1), 2, FIRST, (100, 20, 5, 1)),
        ((2, 3, 4, 5), (60, 1, 15, 3), 2, LAST, (100, 1, 25, 5)),
        ((2, 1, 4, 5), (20, 20, 5, 1), 2, FIRST, (60, 20, 5, 1)),
        ((2, 1, 4, 5), (20, 1, 5, 1), 2, LAST, (60, 1, 15, 3)),
        ((2, 1, 4, 5), (20, 1, 5, 1), 0, None, (20, 1, 5, 1)),
        ((2, 3, 1, 1), (3, 1, 1, 1), 2, FIRST, (5, 1, 1, 1)),
        ((2, 3, 1, 1), (3, 1, 3, 3), 2, LAST, (5, 1, 5, 5)),
        ((2, 1, 1, 1), (1, 1, 1, 1), 2, FIRST, (3, 1, 1, 1)),
        ((1, 3, 4, 1), (7, 1, 3, 9), 0, None, (12, 1, 3, 3)),  # valid, though not PyTorch's own
    ],
)
def test_memory_format_follows_the_strides_of_x(shape, strides, c2, form, expected):
    """In the fake that an export sees, too."""
    b, c1, h, w = shape
    x = torch.zeros(2000).as_strided(shape, strides)
    skip = torch.empty(b, c2, h, w, memory_format=form).zero_() if c2 else None
    weight = torch.ones(c1 + c2)
    args = (x, skip, None, weight, weight, 1, 1e-5, True)
    assert group_norm_silu(*args).stride() == expected
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
        assert group_norm_silu(*fakes).stride() == expected


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operator_is_registered_as_it_behaves(dtype, form):
    x, skip, shift, weight, *rest = make_inputs(TINY, dtype, form, device="cpu")
    torch.library.opcheck(group_norm_silu, (x, skip, shift, weight, *rest))
    torch.library.opcheck(group_norm_silu, (x, None, None, weight[:4], weight[:4], 2, 1e-5, False))
    torch.library.opcheck(group_norm_silu, (x, skip, shift[:1], weight, *rest))


class Block(torch.nn.Module):
    """Between two operations, of which the second depends on the memory format."""

    def forward(self, x, skip, shift, weight, bias):
        y = group_norm_silu(2 * x, skip, shift, weight, bias, 3, 1e-5, True)
        return torch.nn.functional.avg_pool2d(y, 2)


@pytest.mark.parametrize("form", FORMATS)
def test_exports_with_a_symbolic_batch(form):
    sample = make_inputs(TINY, form=form, device="cpu")[:5]
    b = torch.export.Dim("b", min=1, max=64)
    shapes = ({0: b}, {0: b}, {0: b}, None, None)
    program = torch.export.export(Block(), tuple(sample), dynamic_shapes=shapes)
    (call,) = [n for n in program.graph.nodes if "tadiff" in str(n.target)]
    assert call.target is torch.ops.tadiff.group_norm_silu.default
    for batch in (1, 5):
        x, skip, shift, weight, bias = make_inputs((batch, *TINY[1:]), form=form, device="cpu")[:5]
        expected = Block()(x, skip, shift, weight, bias)
        got = program.module()(x, skip, shift, weight, bias)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def test_runs_on_a_cpu_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from tadiff_kernels.group_norm_silu import group_norm_silu\n"
        "x = torch.ones(1, 4, 2, 2)\n"
        "group_norm_silu(x, None, None, torch.ones(4), torch.ones(4), 2, 1e-5, True)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


BAD = {
    "x must be a .*got torch.float64": lambda a: a | {"x": a["x"].double()},
    r"x must be a .*got torch.float32 of shape \(4, 7, 5\)": lambda a: a | {"x": a["x"][0]},
    "x must be a .*not empty": lambda a: a | {"x": a["x"][:0]},
    r"skip must be .*\(3, 5, 7, 5\) .*got torch.float16": lambda a: a | {"skip": a["skip"].half()},
    r"skip must be .*got .*\(3, 5, 5, 7\)": lambda a: a | {"skip": a["skip"].mT},
    "both be contiguous or both channels_last, got skip": lambda a: (
        a | {"skip": a["skip"].contiguous()}
    ),
    "both be contiguous or both channels_last, got x": lambda a: a | {"x": a["x"].mT.mT[..., ::2]},
    r"shift must be .*\(1, 9\) or \(3, 9\).*got .*\(2, 9\)": lambda a: (
        a | {"shift": a["shift"][:2]}
    ),
    "shift must be torch.float32": lambda a: a | {"shift": a["shift"].half()},
    "rows of shift must be contiguous": lambda a: a | {"shift": a["shift"].T.contiguous().T},
    r"weight must be .*\(9,\).*got .*\(8,\)": lambda a: a | {"weight": a["weight"][1:]},
    "weight must be contiguous": lambda a: a | {"weight": torch.ones(18)[::2]},
    "num_groups=2 does not divide the 9 channels": lambda a: a | {"num_groups": 2},
    "num_groups=0 does not divide": lambda a: a | {"num_groups": 0},
    "eps must be above 0, got 0.0": lambda a: a | {"eps": 0.0},
    "eps must be above 0, got nan": lambda a: a | {"eps": float("nan")},
}


@pytest.mark.parametrize("message", BAD)
def test_refuses(message):
    names = ("x", "skip", "shift", "weight", "bias", "num_groups", "eps", "silu")
    args = dict(zip(names, make_inputs(TINY, device="cpu"), strict=True))
    if "got x" in message:
        args["skip"] = None
    with pytest.raises(ValueError, match=message):
        group_norm_silu(**BAD[message](args))


def test_refuses_two_devices():
    x, skip, shift, weight, bias, *rest = make_inputs(TINY, device="cpu")
    with pytest.raises(ValueError, match=r"bias must be .* on cpu, got .* on meta"):
        _check(x, skip, shift, weight, bias.to("meta"), *rest[:2])


def test_refuses_samples_beyond_int32():
    x = torch.empty(2, 2**11 + 1, 2**10, 2**9, device="meta", dtype=torch.float16)
    weight = torch.empty(2**11 + 1, device="meta")
    with pytest.raises(ValueError, match="more than 1073741824 elements"):
        _check(x, None, None, weight, weight, 1, 1e-5)


@pytest.mark.parametrize(("channels", "refused"), [(2**16, False), (2**16 + 1, True)])
def test_refuses_groups_wider_than_a_tile(channels, refused):
    """Statistics of a group beside 16 channels: 2^20 numbers, the most in Triton."""
    x, weight = (torch.empty(*n, device="meta") for n in ((1, channels, 1, 1), (channels,)))
    expected = pytest.raises(ValueError, match="at most 65536 channels, got 65537")
    with expected if refused else nullcontext():
        _check(x, None, None, weight, weight, 1, 1e-5)


def variant(kernel, name, dtype, constants, without=()):
    """As `launch` compiles it for sizes and pointers that are multiples of 16."""
    types = {"x_ptr": f"*{dtype}", "skip_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
    signature, aligned = {}, []
    for at, arg in enumerate(kernel.arg_names):
        pointer = arg.endswith("_ptr")
        signature[arg] = types.get(arg, "*fp32") if pointer else "i32"
        if arg in constants or arg in without:
            signature[arg] = "constexpr"
        elif arg in ("C", "C1", "P", "SPAN", "WIDTH") or (pointer and arg != "shift_ptr"):
            aligned.append(at)
    where = f"{group_norm_silu_triton.__name__}:{kernel.__name__}"
    warps = WHOLE_WARPS if kernel is _whole else PART_WARPS
    return Variant(
        where, name, signature, constants, tuple(aligned), num_warps=warps, skipped=tuple(without)
    )


def variants(dtype):
    """With all inputs, and with those of the encoder and of attention."""
    result = {"EPS": 1e-5, "SILU": True}
    for last, block_p, block_c, group in [(True, 512, 16, 4), (False, 8192, 1, 8)]:
        layout = "channels_last" if last else "contiguous"
        part = {"CHANNELS_LAST": last, "BLOCK_P": block_p, "BLOCK_C": block_c}
        image = part | {"BLOCK_P": 1024, "BLOCK_G": group, "BLOCK_C": block_c if last else group}
        merge, image = part | result | {"BLOCK_R": 128}, image | result
        full, plain = f"{dtype} {layout} with skip and shift", f"{dtype} {layout}"
        yield variant(_statistics, full, dtype, part)
        yield variant(_normalise, full, dtype, merge)
        yield variant(_whole, full, dtype, image)
        if dtype == "fp16":
            without = ("skip_ptr", "shift_ptr")
            yield variant(_statistics, plain, dtype, part, without[:1])
            yield variant(_normalise, plain, dtype, merge, without)
            yield variant(_whole, plain, dtype, image | {"SILU": False}, without)


def single_value():
    """Triton makes constants of sizes that are 1, which then are no tensors in the kernel."""
    sizes = dict.fromkeys(("C", "C1", "P", "GROUP", "SPLITS", "SPAN", "WIDTH"), 1)
    options = {"EPS": 1e-5, "SILU": True, "CHANNELS_LAST": False}
    options |= {"BLOCK_R": 1, "BLOCK_P": 1, "BLOCK_G": 1, "BLOCK_C": 1} | sizes
    for kernel in (_statistics, _normalise, _whole):
        constants = {name: options[name] for name in kernel.arg_names if name in options}
        yield variant(kernel, "of one value", "fp16", constants, ("skip_ptr",))


TABLE = Path(__file__).parent / "resources" / "group_norm_silu.json"


@pytest.mark.slow
def test_compiles_within_the_recorded_resources():
    real = [v for dtype in ("fp32", "fp16", "bf16") for v in variants(dtype)]
    found = compile_variants([*single_value(), *real])
    check_against(TABLE, found)
    for r in found:
        if "of one value" in r.variant:
            continue
        assert "ld.global.v4.b32" in r.ptx, f"{r.variant} does not load 16 bytes at a time"
        assert ("st.global.v4.b32" in r.ptx) != r.variant.startswith("_statistics"), r.variant


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 32, 0, 192, 192, 32),
        (1, 64, 32, 192, 192, 32),
        (2, 96, 64, 96, 96, 32),
        (5, 128, 96, 48, 48, 32),
        (40, 128, 128, 24, 24, 32),
        (1, 512, 512, 24, 24, 32),
    ],
)
def test_on_a_gpu_at_real_shapes(shape, form, dtype):
    args = make_inputs(shape, dtype, form)
    y = group_norm_silu(*args)
    error_budget(reference, *args).check(y)
    assert y.is_contiguous(memory_format=form)
    assert all(torch.equal(group_norm_silu(*args), y) for _ in range(5))


@pytest.mark.gpu
def test_on_a_gpu_in_a_graph():
    args = make_inputs((2, 64, 32, 96, 96, 32), torch.float16)
    group_norm_silu(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = group_norm_silu(*args)
    args[0].mul_(-2)
    graph.replay()
    assert torch.equal(y, group_norm_silu(*args))
