"""The attention kernel against `softmax_one` in float64, its bounds, memory and arguments.

On a GPU the kernel compiles and runs; elsewhere conftest.py turns on Triton's interpreter, so
index arithmetic, masks and dtypes are still exercised, on small shapes.
"""

import importlib
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tadiff_kernels import attention_triton
from tadiff_kernels.accuracy import error_budget
from tadiff_kernels.ahead import Variant, check_against, compile_variants
from tadiff_kernels.attention import _check, attention
from tadiff_kernels.attention import attention_reference as reference
from tadiff_kernels.attention_triton import launch, tiling
from tadiff_train.network import attend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [  # b, l, heads, d
    (2, 1, 2, 16),  # one token: half of its value
    (1, 9, 4, 24),  # a block mostly empty; width padded to 32
    (1, 36, 1, 128),  # the widest head
    (2, 64, 2, 32),  # whole blocks, nothing masked but queries
    (1, 100, 3, 48),
    (1, 130, 1, 96),  # two keys in the last block
    (2, 193, 2, 16),  # one key in the last block
    (1, 70, 2, 5),  # a width that nothing divides
]


def make_qkv(shape, dtype=torch.float32, device=DEVICE, spread=1.0):
    """Random (b, l, 3c) between samples of NaN. `spread`: standard deviation of q and k."""
    b, l, heads, d = shape  # noqa: E741
    rng = torch.Generator().manual_seed(11)
    qkv = torch.randn(b, l, heads, 3, d, generator=rng, dtype=torch.float64)
    qkv[..., :2, :] *= spread
    memory = torch.full((b + 2, l, 3 * heads * d), float("nan"), dtype=dtype, device=device)
    memory[1:-1] = qkv.flatten(2).to(dtype)
    return memory[1:-1]


def with_scores(profile, d, dtype):
    """(1, l, 3d) qkv of one head whose every query scores key j as `profile[j]`."""
    profile = torch.as_tensor(profile, dtype=torch.float64)
    qkv = make_qkv((1, len(profile), 1, d), dtype).unflatten(-1, (3, d))
    qkv[..., :2, :] = 0
    qkv[..., 0, 0] = 1
    qkv[..., 1, 0] = (profile * d**0.5).to(qkv)
    return qkv.flatten(2)


def run(qkv, num_heads):
    """What `launch` writes over NaN; the samples before and after must stay NaN."""
    b, tokens, channels = qkv.shape
    memory = torch.full((b + 2, tokens, channels // 3), float("nan")).to(qkv)
    before = qkv.clone()
    launch(qkv, num_heads, memory[1:-1])
    assert torch.equal(qkv.nan_to_num(), before.nan_to_num())
    assert memory[[0, -1]].isnan().all()
    return memory[1:-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_reference(shape, dtype):
    qkv, num_heads = make_qkv(shape, dtype), shape[2]
    error_budget(reference, qkv, num_heads).check(run(qkv, num_heads))


@pytest.mark.parametrize("shape", [(1, 577, 2, 24), (2, 128, 2, 64)])
def test_the_reference_is_the_published_attention(shape):
    """Its heads are cut from channels as the network cuts them. Plain softmax is 1 % away."""
    b, tokens, heads, d = shape
    qkv = make_qkv(shape, torch.float64, "cpu")
    q, k, v = qkv.transpose(1, 2).reshape(b * heads, 3 * d, tokens).chunk(3, dim=1)
    published = attend(q, k, v).reshape(b, heads * d, tokens).transpose(1, 2)
    torch.testing.assert_close(reference(qkv, heads), published, rtol=0, atol=1e-14)


def test_weights_by_hand():
    """Scores 0 and -log 3: S = 4/3, so the weights are 3/7 and 1/7."""
    qkv = with_scores([0.0, -1.0986122886681098], 4, torch.float64).cpu()
    v = qkv[0, :, 8:]
    expected = (3 * v[:1] + v[1:]) / 7
    torch.testing.assert_close(reference(qkv, 1)[0], expected.expand(2, 4), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [10.0, 60.0])  # scores to some 600 and 20,000
def test_large_scores(spread, dtype):
    qkv = make_qkv((1, 130, 2, 24), dtype, spread=spread)
    error_budget(reference, qkv, 2).check(run(qkv, 2))


TOKENS = 150
PROFILES = {
    "equal": torch.zeros(TOKENS),
    "rising": torch.linspace(-8, 8, TOKENS),  # the last key of the last block is the maximum
    "falling": torch.linspace(8, -8, TOKENS),
    "negative": torch.linspace(-60, -50, TOKENS),  # a masked key of score 0 would be the maximum
    "one key": 40.0 * (torch.arange(TOKENS) == 77),
    "far below": -1e4 + torch.linspace(-3, 3, TOKENS).square(),
    "far above": 1e4 - torch.linspace(-3, 3, TOKENS).square(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROFILES)
def test_rows_of_one_kind(name, dtype):
    qkv = with_scores(PROFILES[name], 16, dtype)
    error_budget(reference, qkv, 1).check(run(qkv, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 24), (2, 9, 2, 24), (1, 150, 2, 24)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 40.0])
def test_weights_sum_to_between_a_half_and_one(shape, spread, dtype):
    """Equal scores reach l / (l + 1); one large one reaches 1/2. Rounding may add a last place."""
    _, tokens, heads, d = shape
    qkv = make_qkv(shape, dtype, spread=spread).unflatten(-1, (heads, 3, d))
    qkv[..., 2, :] = 1
    sums = run(qkv.flatten(2), heads).double()
    eps = torch.finfo(dtype).eps
    assert sums.min() >= 0.5 * (1 - eps)
    assert sums.max() <= tokens / (tokens + 1) * (1 + eps)


def test_a_nan_stays_where_it_belongs():
    """A value reaches its own channel; a key all channels of its head; nothing else.

    Where a mask is missing, the padding of one head reads the next one's channels.
    """
    shape = (2, 70, 2, 24)
    qkv = make_qkv(shape).unflatten(-1, (2, 3, 24))
    qkv[0, 66, 0, 2, 5] = float("nan")
    qkv[1, 3, 1, 1, 7] = float("nan")
    expected = torch.zeros(2, 70, 2, 24, dtype=torch.bool, device=DEVICE)
    expected[0, :, 0, 5] = True
    expected[1, :, 1] = True
    assert torch.equal(run(qkv.flatten(2), 2).isnan(), expected.flatten(2))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_blocks_of_128_queries(dtype, monkeypatch):
    monkeypatch.setattr(attention_triton, "MANY", 1)
    assert tiling(1, 200, 2, 24, dtype)[0]["BLOCK_M"] == 128
    qkv = make_qkv((2, 200, 2, 24), dtype)
    error_budget(reference, qkv, 2).check(run(qkv, 2))


def test_many_samples_take_blocks_of_128_queries():
    blocks = {b: tiling(b, 2304, 4, 24, torch.float16)[0]["BLOCK_M"] for b in (1, 14, 15, 40)}
    assert blocks == {1: 64, 14: 64, 15: 128, 40: 128}


def test_160_heads():
    qkv = make_qkv((40, 5, 4, 16), torch.float16)
    error_budget(reference, qkv, 4).check(run(qkv, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "d"), [(2304, 24), (576, 32), (577, 128)])
def test_one_head_of_the_published_network(tokens, d):
    qkv = make_qkv((1, tokens, 1, d), torch.float16)
    error_budget(reference, qkv, 1).check(run(qkv, 1))


def test_the_same_bits_on_every_run():
    qkv = make_qkv((1, 130, 2, 24))
    assert torch.equal(run(qkv, 2), run(qkv, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "d"), [(2304, 4, 24), (576, 4, 32), (2304, 1, 96)])
def test_shapes_of_the_published_networks(tokens, heads, d, dtype):
    qkv = make_qkv((5, tokens, heads, d), dtype)
    error_budget(reference, qkv, heads).check(run(qkv, heads))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "d"), [(2304, 24), (576, 32), (900, 24)])
def test_a_row_does_not_depend_on_its_batch(tokens, d, dtype):
    """Alone it is computed in smaller blocks of queries."""
    qkv = make_qkv((60, tokens, 4, d), dtype)
    together = run(qkv, 4)
    for sample in (0, 37):
        assert torch.equal(run(qkv[sample : sample + 1], 4)[0], together[sample])


@pytest.mark.gpu
def test_a_sample_that_begins_beyond_int32():
    qkv = torch.zeros(2**31 // (576 * 384) + 2, 576, 384, dtype=torch.float16, device=DEVICE)
    qkv[-1] = make_qkv((1, 576, 4, 32), torch.float16)[0]
    error_budget(reference, qkv[-1:], 4).check(attention(qkv, 4)[-1:])


@pytest.mark.gpu
def test_a_replayed_cuda_graph_has_the_bits_of_a_launch():
    qkv = make_qkv((2, 576, 4, 32), torch.float16)
    attention(qkv, 4)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(qkv, 4)
    qkv.mul_(0.5)
    graph.replay()
    assert torch.equal(out, attention(qkv, 4))


# opcheck calls what PyTorch deprecated in itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 9, 4, 24), (1, 36, 1, 16)])
def test_the_operator_keeps_its_promises(shape, dtype):
    """Schema, fake result and its strides, and how it behaves under tracing."""
    torch.library.opcheck(attention, (make_qkv(shape, dtype), shape[2]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [70, 193, 400])  # a CPU takes 192 queries at a time
def test_the_operator_on_this_device(dtype, tokens):
    qkv = make_qkv((2, tokens, 2, 24), dtype)
    out = torch.ops.tadiff.attention(qkv, 2)
    assert out.is_contiguous()
    error_budget(reference, qkv, 2).check(out)


def rms_error(got, exact):
    return (got.double() - exact).square().mean().sqrt()


def with_rounded_weights(qkv, num_heads):
    """Attention with exp(x - max x) in the dtype of `qkv`, all else in float64."""
    heads = qkv.double().unflatten(-1, (num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
    q, k, v = heads
    scores = q @ k.mT / q.shape[-1] ** 0.5
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    y = (e.to(qkv.dtype).double() @ v) / (1 + e.sum(-1, keepdim=True))
    return y.transpose(1, 2).flatten(2).to(qkv.dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", [(2, 130, 2, 24), (1, 400, 1, 16)])
def test_on_a_cpu_half_precision_rounds_weights_as_the_kernel_does(shape, dtype):
    """A certificate measured there promises no more than runs. Fp32 weights: 0.73 to 0.79."""
    qkv, num_heads = make_qkv(shape, dtype, "cpu"), shape[2]
    exact = reference(qkv.double(), num_heads)
    expected = rms_error(with_rounded_weights(qkv, num_heads), exact)
    on_cpu = rms_error(attention(qkv, num_heads), exact)
    assert 0.95 * expected <= on_cpu <= 1.05 * expected
    if dtype == torch.float16 or DEVICE == "cuda":  # the interpreter truncates to bf16
        kernel = rms_error(run(qkv.to(DEVICE), num_heads).cpu(), exact)
        assert 0.95 * kernel <= on_cpu <= 1.05 * kernel


def test_an_empty_batch_is_empty():
    assert attention(make_qkv((0, 9, 2, 16)), 2).shape == (0, 9, 32)
    assert run(make_qkv((0, 9, 2, 16)), 2).shape == (0, 9, 32)


def test_exports_with_any_batch():
    class Layer(torch.nn.Module):
        def forward(self, qkv):
            return torch.ops.tadiff.attention(qkv, 2)

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Layer(), (make_qkv((3, 9, 2, 16)),), dynamic_shapes={"qkv": {0: batch}}
    )
    assert "tadiff.attention" in program.graph_module.code
    for b in (1, 4):
        qkv = make_qkv((b, 9, 2, 16))
        assert torch.equal(program.module()(qkv), attention(qkv, 2))


@pytest.mark.parametrize(
    ("qkv", "num_heads", "message"),
    [
        (torch.zeros(1, 4, 48, dtype=torch.float64), 1, "fp32, fp16 or bf16, got torch.float64"),
        (torch.zeros(4, 48), 1, r"shape \(b, l, 3c\).* got \(4, 48\)"),
        (torch.zeros(1, 0, 48), 1, r"l of at least 1, got \(1, 0, 48\)"),
        (torch.zeros(1, 4, 48), 0, "0 heads"),
        (torch.zeros(1, 4, 48), 3, "values of 3 heads, 3 x 3 x d channels, got 48"),
        (torch.zeros(1, 4, 50), 1, "got 50"),
        (torch.zeros(1, 4, 0), 1, "got 0"),
        (torch.zeros(1, 4, 3 * 129), 1, "128 channels wide, got 129"),
        (torch.zeros(1, 48, 4).transpose(1, 2), 1, "contiguous, got strides"),
    ],
)
def test_rejects_what_it_would_misread(qkv, num_heads, message):
    with pytest.raises(ValueError, match=message):
        attention(qkv.to(DEVICE), num_heads)


@pytest.mark.parametrize(
    ("shape", "num_heads", "message"),
    [
        ((65_536, 1, 3), 1, "b and num_heads may be at most 65535, got 65536 and 1"),
        ((1, 1, 3 * 65_536), 65_536, "b and num_heads may be at most 65535, got 1 and 65536"),
        ((1, 2**20, 2**11 + 1), 683, "at most 2147483647 elements, got 1048576 x 2049"),
    ],
)
def test_rejects_what_a_launch_cannot_address(shape, num_heads, message):
    with pytest.raises(ValueError, match=message):
        _check(torch.empty(shape, device="meta"), num_heads)


@pytest.mark.parametrize(
    ("shape", "num_heads"), [((65_535, 1, 3 * 65_535), 65_535), ((1, 2**31 // 3 - 1, 3), 1)]
)
def test_accepts_what_a_launch_can_address(shape, num_heads):
    _check(torch.empty(shape, device="meta"), num_heads)


IMAGE, NORMED = torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 2, 2)
ON_GPU = [  # operator, its function for a GPU, what launches, arguments
    ("attention", "on_gpu", "launch", (torch.zeros(1, 4, 48), 1)),
    ("conditioning", "on_gpu", "launch", (IMAGE, None, None, None)),
    ("group_norm_silu", "on_gpu", "launch", (NORMED, *[None] * 7)),
    ("solver_step", "step_on_gpu", "launch", (IMAGE,)),
    ("solver_step", "start_on_gpu", "launch_start", (IMAGE,)),
    ("ensemble_step", "on_gpu", "launch", (IMAGE,)),
]


@pytest.mark.parametrize(("name", "function", "launch_name", "arguments"), ON_GPU)
def test_every_operator_launches_on_the_device_of_its_tensors(
    name, function, launch_name, arguments, monkeypatch
):
    """Not on the one that PyTorch happens to be at: its addresses mean nothing there."""
    operator = importlib.import_module(f"tadiff_kernels.{name}")
    kernels = importlib.import_module(f"tadiff_kernels.{name}_triton")
    entered, at_launch = [], []

    @contextmanager
    def device(chosen):
        entered.append(chosen)
        yield
        entered.pop()

    for check in [check for check in dir(operator) if check.startswith("_check")]:
        monkeypatch.setattr(operator, check, lambda *_: None)
    monkeypatch.setattr(kernels, launch_name, lambda *_: at_launch.extend(entered))
    monkeypatch.setattr(torch.cuda, "device", device)
    getattr(operator, function)(*arguments)
    assert at_launch == [arguments[0].device]


def test_the_operator_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import torch, tadiff_kernels.attention; "
        "assert torch.ops.tadiff.attention(torch.ones(1, 2, 6), 1).shape == (1, 2, 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


TABLE = Path(__file__).parent / "resources/attention.json"
SINGLE, HALF, BRAIN = DTYPES
COMPILED = [  # b, l, heads, d; at 192 x 192 of configuration
    ((40, 2304, 4, 24), HALF),  # A
    ((40, 2304, 4, 24), BRAIN),
    ((1, 2304, 4, 24), HALF),
    ((1, 2304, 4, 24), SINGLE),
    ((1, 576, 4, 32), HALF),
    ((1, 576, 4, 32), BRAIN),
    ((80, 2304, 1, 96), HALF),  # B
    ((1, 576, 1, 128), HALF),
    ((1, 576, 1, 128), SINGLE),
    ((1, 576, 4, 64), HALF),  # D
    ((1, 576, 4, 64), SINGLE),
    ((40, 900, 4, 32), HALF),  # A at 240 x 240: a masked tail
    ((40, 900, 4, 32), SINGLE),
    ((1, 900, 1, 128), HALF),
    ((1, 900, 1, 128), SINGLE),
]


def variant(shape, dtype):
    b, tokens, heads, d = shape
    constants, options = tiling(b, tokens, heads, d, dtype)
    pointer = {SINGLE: "*fp32", HALF: "*fp16", BRAIN: "*bf16"}[dtype]
    return Variant(
        kernel="tadiff_kernels.attention_triton:_attention_kernel",
        name=f"{pointer[1:]} b{b} l{tokens} h{heads} d{d}",
        signature={"qkv_ptr": pointer, "out_ptr": pointer, "L": "i32"}
        | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        aligned=(0, 1, 2) if tokens % 16 == 0 else (0, 1),
        **options,
    )


@pytest.fixture(scope="module")
def compiled():
    return compile_variants([variant(shape, dtype) for shape, dtype in COMPILED])


TENSOR_CORES = {80: r"\bmma\.sync", 90: r"\bwgmma\.mma_async", 100: r"\btcgen05\.mma"}


@pytest.mark.slow
def test_needs_no_more_than_recorded(compiled):
    check_against(TABLE, compiled)


@pytest.mark.slow
def test_half_precision_multiplies_on_tensor_cores_and_fp32_does_not(compiled):
    for found in compiled:
        used = [p for p in TENSOR_CORES.values() if re.search(p, found.ptx)]
        single = " fp32 " in found.variant
        assert used == ([] if single else [TENSOR_CORES[found.arch]]), found.variant
        assert "tf32" not in found.ptx, found.variant
