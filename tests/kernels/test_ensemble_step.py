"""Statistics on the device against `tadiff_rt.ensemble.SliceStatistics` in float64.

On a GPU the kernels compile and run; elsewhere conftest.py turns on Triton's interpreter. Both
execute the same IEEE operations, so errors measured here hold there.
"""

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tadiff_kernels import ensemble_step_triton
from tadiff_kernels.ahead import Variant, check_against, compile_variants
from tadiff_kernels.ensemble_step import (
    PLANES,
    TARGET_SLOT,
    ensemble_step,
    ensemble_step_reference,
    slot_of_state,
    statistics_state,
)
from tadiff_kernels.ensemble_step_triton import BLOCK, launch
from tadiff_rt import ensemble
from tadiff_rt.ensemble import SliceStatistics, mask_probability

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TABLE = Path(__file__).parent / "resources/ensemble_step.json"
U2 = 2.0**-48
FLOAT64 = 1 + 2.0**-4
"""What the float64 of the oracle adds to a bound: its unit is 2^-53, its recurrences the same."""

GARBAGE = -77
BOTH = pytest.mark.parametrize("step", [launch, ensemble_step_reference], ids=["kernel", "torch"])


class Device:
    """Buffers of `slots` slices and `capacity` samples, full of garbage."""

    def __init__(self, inside: np.ndarray, slots: int, capacity: int) -> None:
        h, w = inside.shape
        self.inside = torch.from_numpy(inside.astype(np.uint8)).to(DEVICE)
        self.sums = torch.full((slots, PLANES, h, w), math.nan, device=DEVICE)
        shape = (slots, capacity, 2)
        self.counts = torch.full(shape, GARBAGE, dtype=torch.int32, device=DEVICE)

    def arguments(self, images: np.ndarray, logits: np.ndarray, segments) -> tuple:
        batch = (torch.from_numpy(array.copy()).to(DEVICE) for array in (images, logits))
        words = torch.tensor(segments, dtype=torch.int32, device=DEVICE)
        return self.sums, self.counts, *batch, self.inside, words

    def statistics(self, slot: int, samples: int) -> SliceStatistics:
        state = statistics_state(self.sums, self.counts, slot, samples)
        return SliceStatistics.restored(state)


def drawn(n: int, h: int, w: int, centre: float = 0.5, spread: float = 0.2) -> tuple:
    """(n, 3, h, w) images and (n, 4, h, w) logits of n samples of one slice."""
    rng = np.random.default_rng(n * 1000 + h)
    base = centre * rng.random((3, h, w))
    images = base + spread * rng.standard_normal((n, 3, h, w))
    logits = 5 * rng.standard_normal((n, 4, h, w))
    return images.astype(np.float32), logits.astype(np.float32)


def ring(h: int, w: int) -> np.ndarray:
    """Voxels on the patient's grid: neither all nor symmetric."""
    inside = np.ones((h, w), np.bool_)
    inside[: h // 4], inside[:, : w // 3] = False, False
    return inside


def expected(images, logits, inside) -> SliceStatistics:
    """As the runtime adds samples."""
    statistics = SliceStatistics(images.shape[1:], inside.shape)
    for image, logit in zip(images, logits, strict=True):
        statistics.add(image, np.where(inside, logit[TARGET_SLOT], -np.inf))
    return statistics


def check_bounds(got: SliceStatistics, exact: SliceStatistics, largest) -> None:
    """Counts and the last sample are equal; sums keep the bounds that the kernel's module states.

    largest: of |x| over the samples of every voxel.
    """
    n = exact.count
    assert (got.areas, got.overlaps) == (exact.areas, exact.overlaps)
    state, truth = got.state(), exact.state()
    np.testing.assert_array_equal(state["_last_image"], truth["_last_image"])
    np.testing.assert_array_equal(state["_last_mask"], truth["_last_mask"])
    mean_bound = (12 + 1.6 * n) * U2 * largest
    squares = truth["_squares"]
    root = np.sqrt(n * squares)
    bounds = {
        "_mean": mean_bound,
        "_squares": (9 + 3.2 * n) * U2 * squares + 2.9 * root * mean_bound,
        "_pair_sum": 3.2 * n * U2 * truth["_pair_sum"],
        # mask_probability itself is off by 2^-53, which counts where the probability is tiny
        "_probability_sum": 2.0**-22 * truth["_probability_sum"] + n * 2.0**-52,
    }
    for name, bound in bounds.items():
        error = np.abs(state[name] - truth[name])
        assert (error <= FLOAT64 * bound).all(), f"{name}: {(error - FLOAT64 * bound).max():.2e}"


SHAPES = {
    "one program, part of its elements": (5, 7),
    "two programs of masks, five of images": (31, 23),
    "one voxel": (1, 1),
    "whole programs": (16, 32),
}


@BOTH
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_statistics_are_those_of_float64(step, shape):
    images, logits = drawn(5, *shape)
    inside = ring(*shape)
    device = Device(inside, 3, 6)
    step(*device.arguments(images, logits, [[0, 5, 1, 0]]))
    exact = expected(images, logits, inside)
    check_bounds(device.statistics(1, 5), exact, np.abs(images).max(0))
    assert device.sums[[0, 2]].isnan().all()
    assert (device.counts[[0, 2]] == GARBAGE).all()
    assert (device.counts[1, 5:] == GARBAGE).all()


@BOTH
@pytest.mark.parametrize(
    ("n", "centre", "spread"),
    [(40, 1.0, 0.1), (5, 1000.0, 1e-4), (7, 0.0, 1e-12), (3, 1e6, 0.0)],
    ids=["many", "close beside a large mean", "tiny", "equal"],
)
def test_sums_keep_their_bounds(step, n, centre, spread):
    images, logits = drawn(n, 4, 5, centre, spread)
    inside = np.ones((4, 5), np.bool_)
    device = Device(inside, 1, n)
    step(*device.arguments(images, logits, [[0, n, 0, 0]]))
    exact = expected(images, logits, inside)
    check_bounds(device.statistics(0, n), exact, np.abs(images).max(0))


def test_a_run_of_many_batches_keeps_its_bounds():
    """Against fractions: 64 samples of one voxel, whose mean is no float."""
    n = 64
    images, logits = drawn(n, 1, 1, 1.0, 0.3)
    device = Device(np.ones((1, 1), np.bool_), 1, n)
    for first in range(0, n, 16):
        part = slice(first, first + 16)
        launch(*device.arguments(images[part], logits[part], [[0, 16, 0, first]]))
    planes = [Fraction(value) for value in device.sums[0, :, 0, 0].tolist()]
    for c in range(3):
        values = [Fraction(float(x)) for x in images[:, c, 0, 0]]
        mean = sum(values) / n
        squares = sum((x - mean) ** 2 for x in values)
        bound = (12 + 1.6 * n) * U2 * float(max(map(abs, values)))
        assert abs(planes[c] + planes[3 + c] - mean) <= bound
        s = float(squares)
        bound = (9 + 3.2 * n) * U2 * s + 2.9 * math.sqrt(n * s) * bound
        assert abs(planes[6 + c] + planes[9 + c] - squares) <= bound


def bits(device: Device) -> tuple[np.ndarray, np.ndarray]:
    return device.sums.cpu().numpy().view(np.int32), device.counts.cpu().numpy()


@BOTH
@pytest.mark.parametrize(
    ("cuts", "shape"),
    [((2, 5), (9, 11)), ((1, 2, 3, 4, 5), (40, 48))],  # few sums show where they were trimmed
)
def test_how_samples_are_cut_into_batches_changes_no_bit(step, cuts, shape):
    images, logits = drawn(5, *shape)
    whole, parts = (Device(ring(*shape), 1, 5) for _ in range(2))
    step(*whole.arguments(images, logits, [[0, 5, 0, 0]]))
    first = 0
    for last in cuts:
        batch = (images[first:last], logits[first:last])
        step(*parts.arguments(*batch, [[0, last - first, 0, first]]))
        first = last
    for one, other in zip(bits(whole), bits(parts), strict=True):
        np.testing.assert_array_equal(one, other)


@BOTH
def test_segments_of_a_batch_go_to_their_slots(step):
    """A slice that ends, a whole one, one that begins; a segment and rows that are padding."""
    inside = ring(5, 7)
    samples = [drawn(4, 5, 7, centre) for centre in (0.2, 0.5, 0.9)]
    device = Device(inside, 4, 4)
    step(*device.arguments(*(part[:3] for part in samples[0]), [[0, 3, 2, 0], [0, 0, 0, 0]]))
    together = [
        np.concatenate([samples[0][k][3:], samples[1][k], samples[2][k][:2], samples[0][k][:1]])
        for k in range(2)
    ]
    step(*device.arguments(*together, [[0, 1, 2, 3], [1, 4, 0, 0], [5, 2, 3, 0], [0, 0, 0, 0]]))
    for slot, (images, logits), n in zip((2, 0, 3), samples, (4, 4, 2), strict=True):
        exact = expected(images[:n], logits[:n], inside)
        check_bounds(device.statistics(slot, n), exact, np.abs(images[:n]).max(0))
    assert device.sums[1].isnan().all()
    assert (device.counts[1] == GARBAGE).all()


@BOTH
def test_a_slot_is_used_again(step):
    inside = ring(5, 7)
    device = Device(inside, 1, 5)
    step(*device.arguments(*drawn(5, 5, 7), [[0, 5, 0, 0]]))
    images, logits = drawn(3, 5, 7)
    step(*device.arguments(images, logits, [[0, 3, 0, 0]]))
    exact = expected(images, logits, inside)
    check_bounds(device.statistics(0, 3), exact, np.abs(images).max(0))


EDGE = np.float32(2.0**-52)
"""Half a unit above 1/2 in float64: the largest logit whose probability rounds to 1/2."""

ABOVE, BELOW = np.nextafter(EDGE, np.float32([1, 0]), dtype=np.float32)
LOGITS = np.array(
    [0, -0.0, EDGE, ABOVE, BELOW, 1e-45, -1e-45, 2 * EDGE, EDGE / 2, -EDGE, 1e-7, -1e-7, 1, -1,
     20, -20, 87, -87, 90, -90, 120, -120, 3e38, -3e38, np.inf, -np.inf],
    np.float32,
)  # fmt: skip


@BOTH
def test_tumour_is_where_the_definition_says_so(step):
    """Logits whose float64 probability is 1/2 or its neighbour, and the far ends."""
    above = mask_probability(LOGITS) > 0.5
    assert above[LOGITS == ABOVE].all()
    assert not above[LOGITS == EDGE].any()
    logits = np.zeros((1, 4, 1, len(LOGITS)), np.float32)
    logits[0, TARGET_SLOT] = LOGITS
    inside = np.ones((1, len(LOGITS)), np.bool_)
    device = Device(inside, 1, 1)
    step(*device.arguments(np.zeros((1, 3, 1, len(LOGITS)), np.float32), logits, [[0, 1, 0, 0]]))
    state = statistics_state(device.sums, device.counts, 0, 1)
    np.testing.assert_array_equal(state["_last_mask"][0], above)
    assert state["_areas"].tolist() == [above.sum()]
    probability = state["_probability_sum"][0]
    assert probability[-2:].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(probability, mask_probability(LOGITS), rtol=2**-22, atol=2**-52)


@triton.jit
def sigmoid_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < N, 0.0)
    tl.store(out_ptr + at, ensemble_step_triton._sigmoid(x), at < N)


def test_the_sigmoid_keeps_its_bound():
    """Relative, down to the smallest normal numbers; and where the exponent's integer changes."""
    rng = np.random.default_rng(3)
    steps = math.log(2) * (np.arange(-126, 126) + 0.5)
    near = np.add.outer(steps, np.linspace(-1e-4, 1e-4, 41)).ravel()
    values = np.concatenate([rng.uniform(-87, 87, 2**17), rng.standard_normal(2**17), near])
    x = torch.from_numpy(values.astype(np.float32)).clamp(-87, 87).to(DEVICE)
    out = torch.full_like(x, math.nan)
    sigmoid_kernel[(triton.cdiv(len(x), 2**16),)](
        x, out, len(x), BLOCK=2**16, enable_fp_fusion=False
    )
    exact = 1 / (1 + (-x.cpu().double()).exp())
    assert float(((out.cpu().double() - exact).abs() / exact).max()) < 2**-22


def test_the_sum_of_probabilities_loses_nothing():
    """40 times the float32 of one sample, which 40 additions in float32 would not give."""
    logits = np.full((40, 4, 1, 64), np.nan, np.float32)
    logits[:, TARGET_SLOT] = np.linspace(-30, 3, 64, dtype=np.float32)
    images = np.zeros((40, 3, 1, 64), np.float32)
    device = Device(np.ones((1, 64), np.bool_), 2, 40)
    launch(*device.arguments(images, logits, [[0, 1, 0, 0], [0, 40, 1, 0]]))
    one, forty = (
        statistics_state(device.sums, device.counts, slot, 1)["_probability_sum"]
        for slot in (0, 1)
    )
    np.testing.assert_allclose(forty, 40 * one, rtol=3.2 * 40 * U2, atol=0)


@pytest.mark.parametrize("n", [1, 5])
def test_a_state_comes_back_to_the_same_bits(n):
    images, logits = drawn(n, 9, 11, spread=0.9)
    device = Device(ring(9, 11), 2, 6)
    launch(*device.arguments(images, logits, [[0, n, 0, 0]]))
    state = device.statistics(0, n).state()
    sums, counts = slot_of_state(state, 6)
    device.sums[1].copy_(sums)
    device.counts[1].copy_(counts)
    assert (counts[n:] == 0).all()
    np.testing.assert_array_equal(*(device.sums.cpu().numpy().view(np.int32)))
    np.testing.assert_array_equal(*(device.counts[:, :n].cpu().numpy()))


def test_a_state_of_the_definition_goes_on_on_the_device():
    images, logits = drawn(6, 5, 7)
    inside = ring(5, 7)
    device = Device(inside, 1, 6)
    sums, counts = slot_of_state(expected(images[:4], logits[:4], inside).state(), 6)
    device.sums[0].copy_(sums)
    device.counts[0].copy_(counts)
    launch(*device.arguments(images[4:], logits[4:], [[0, 2, 0, 4]]))
    exact = expected(images, logits, inside)
    check_bounds(device.statistics(0, 6), exact, np.abs(images).max(0))


def test_a_state_of_the_device_goes_on_in_the_definition():
    images, logits = drawn(6, 5, 7)
    inside = ring(5, 7)
    device = Device(inside, 1, 4)
    launch(*device.arguments(images[:4], logits[:4], [[0, 4, 0, 0]]))
    got = device.statistics(0, 4)
    for k in (4, 5):
        got.add(images[k], np.where(inside, logits[k, TARGET_SLOT], -np.inf))
    check_bounds(got, expected(images, logits, inside), np.abs(images).max(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": np.array(0.4)}, "threshold must be 0.5, got 0.4"),
        ({"_areas": np.zeros(4, np.int64)}, "samples must be 1 to 3, got 4"),
        ({"_areas": np.zeros(0, np.int64)}, "samples must be 1 to 3, got 0"),
    ],
)
def test_rejects_a_state_that_it_cannot_hold(change, message):
    images, logits = drawn(2, 2, 3)
    state = expected(images, logits, ring(2, 3)).state() | change
    with pytest.raises(ValueError, match=message):
        slot_of_state(state, 3)


@pytest.mark.parametrize("samples", [0, 4])
def test_rejects_a_number_of_samples_that_no_slot_holds(samples):
    device = Device(ring(2, 3), 1, 3)
    with pytest.raises(ValueError, match=f"samples must be 1 to 3, got {samples}"):
        statistics_state(device.sums, device.counts, 0, samples)


def test_the_target_is_the_runtimes():
    assert TARGET_SLOT == ensemble.TARGET_SLOT


def test_the_operator_is_what_it_says():
    """Which arguments change, that nothing aliases, that it traces with fake tensors."""
    device = Device(ring(5, 7), 2, 5)
    device.sums.zero_()
    arguments = device.arguments(*drawn(3, 5, 7), [[0, 2, 1, 0], [2, 1, 0, 0]])
    torch.library.opcheck(ensemble_step, arguments)


def test_the_operator_runs_the_kernel_or_its_reference():
    step = launch if DEVICE == "cuda" else ensemble_step_reference
    devices = [Device(ring(5, 7), 1, 3) for _ in range(2)]
    for device, run in zip(devices, (step, torch.ops.tadiff.ensemble_step), strict=True):
        run(*device.arguments(*drawn(3, 5, 7), [[0, 3, 0, 0]]))
    for one, other in zip(*map(bits, devices), strict=True):
        np.testing.assert_array_equal(one, other)


NAMES = ("sums", "counts", "images", "logits", "inside", "segments")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sums", lambda t: t[:, :14], r"sums must be .* of shape \(2, 24, 5, 7\)"),
        ("sums", lambda t: t.double(), "sums must be torch.float32"),
        ("sums", lambda t: t.mT.contiguous().mT, "sums must be contiguous, got strides"),
        ("counts", lambda t: t[:1], r"counts must be .* of shape \(2, 4, 2\)"),
        ("counts", lambda t: t.long(), "counts must be torch.int32"),
        ("images", lambda t: t[:, :2], r"images must be .* of shape \(3, 3, 5, 7\)"),
        ("logits", lambda t: t.half(), "logits must be torch.float32"),
        ("logits", lambda t: t[:2], r"logits must be .* of shape \(3, 4, 5, 7\)"),
        ("inside", lambda t: t.bool(), "inside must be torch.uint8"),
        ("inside", lambda t: t[:4], r"inside must be .* of shape \(5, 7\)"),
        ("segments", lambda t: t[:, :3], r"segments must be .* of shape \(1, 4\)"),
        ("segments", lambda t: t.long(), "segments must be torch.int32"),
    ],
)
def test_rejects_what_it_would_misread(name, change, message):
    device = Device(ring(5, 7), 2, 4)
    given = device.arguments(*drawn(3, 5, 7), [[0, 3, 0, 0]])
    arguments = dict(zip(NAMES, given, strict=True))
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        ensemble_step(*arguments.values())


def variants() -> list[Variant]:
    """At 192 x 192, and where the sizes are multiples of nothing."""
    words = dict.fromkeys(("counts_ptr", "segments_ptr"), "*i32")
    floats = dict.fromkeys(("sums_ptr", "images_ptr", "logits_ptr"), "*fp32")
    types = words | floats | {"inside_ptr": "*u8", "N": "i32", "P": "i32", "SAMPLES": "i32"}
    kernels = {
        "_images": ("sums_ptr", "counts_ptr", "images_ptr", "segments_ptr", "N", "SAMPLES"),
        "_masks": ("sums_ptr", "counts_ptr", "logits_ptr", "inside_ptr", "segments_ptr", "P",
                   "SAMPLES"),
    }  # fmt: skip
    constants = {"_images": {"BLOCK": BLOCK}, "_masks": {"TARGET": TARGET_SLOT, "BLOCK": BLOCK}}
    return [
        Variant(
            f"tadiff_kernels.ensemble_step_triton:{kernel}",
            "aligned" if aligned else "odd",
            {**{a: types[a] for a in names}, **dict.fromkeys(constants[kernel], "constexpr")},
            constants[kernel],
            tuple(range(len(names) - 1 if aligned else len(names) - 2)),
            enable_fp_fusion=False,
        )
        for kernel, names in kernels.items()
        for aligned in (True, False)
    ]


@pytest.mark.slow
def test_compiles_to_exact_operations_that_fit_every_gpu():
    """No float64, no approximation, nothing fused but what is written as fused."""
    compiled = compile_variants(variants())
    check_against(TABLE, compiled)
    fused = {"_images": 3, "_masks": 9}  # an element, four a thread
    for found in compiled:
        assert ".approx" not in found.ptx, found.variant
        if found.arch < 100:  # later ones compute in packed pairs, at times one for nothing
            count = found.ptx.count("fma.rn.f32")
            assert count == 4 * fused[found.variant.split()[0]], found.variant
        atomics = re.findall(r"\b(?:atom|red)\.\S+", found.ptx)
        assert all(a.endswith("add.u32") for a in atomics), found.variant


@pytest.mark.gpu
def test_a_replayed_cuda_graph_reads_the_new_segments():
    images, logits = drawn(5, 192, 192)
    device, fresh = (Device(ring(192, 192), 3, 5) for _ in range(2))
    arguments = device.arguments(images, logits, [[0, 2, 0, 0], [2, 3, 1, 0]])
    ensemble_step(*arguments)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ensemble_step(*arguments)
    segments = [[0, 5, 2, 0], [0, 0, 0, 0]]
    arguments[-1].copy_(torch.tensor(segments, dtype=torch.int32))
    graph.replay()
    ensemble_step(*fresh.arguments(images, logits, segments))
    for one, other in zip(bits(device), bits(fresh), strict=True):
        np.testing.assert_array_equal(one[2], other[2])
    exact = expected(images, logits, ring(192, 192))
    check_bounds(device.statistics(2, 5), exact, np.abs(images).max(0))


@pytest.mark.gpu
def test_a_slot_and_rows_that_begin_beyond_int32():
    """Element 2^31 of the sums, the images and the logits lies before the last slot and rows."""
    size = 1024
    images, logits = drawn(2, size, size)
    inside = ring(size, size)
    device = Device(inside, 87, 2)
    b = 690
    batch = torch.zeros(b, 3, size, size, device=DEVICE), torch.zeros(b, 4, size, size).cuda()
    for whole, part in zip(batch, (images, logits), strict=True):
        whole[-2:] = torch.from_numpy(part)
    segments = torch.tensor([[b - 2, 2, 86, 0]], dtype=torch.int32, device=DEVICE)
    launch(device.sums, device.counts, *batch, device.inside, segments)
    exact = expected(images, logits, inside)
    check_bounds(device.statistics(86, 2), exact, np.abs(images).max(0))
