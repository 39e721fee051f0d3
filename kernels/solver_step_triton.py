"""Triton kernels of `tadiff_kernels.solver_step`.

Noise comes four elements to a Philox counter, in C order of (3, h, w). A program takes one range
of counters of every channel, so that the seven network outputs of a voxel, which lie side by side
in a channels_last output, are read by one program and reach it through L2 once.

Every operation is an IEEE-754 one rounded to nearest, and the compiler must not fuse a * b + c:
launches say `enable_fp_fusion=False`.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tadiff_kernels.philox_triton import _box_muller, _philox
from tadiff_kernels.solver_step import COLUMNS

BLOCK = 64
"""Counters of a program, one a thread of two warps, which makes 16 bytes of every float32 array a
thread; a 192 x 192 image is 144 programs, one for each of the 132 multiprocessors of an H100. Not
yet tuned on a GPU."""


@triton.jit
def _noise(counter, rows_ptr, row, seed_ptr, step, BLOCK: tl.constexpr):
    """4 BLOCK normals, in C order, of BLOCK counters."""
    slice_index = tl.load(rows_ptr + 2 * row).to(tl.uint32, bitcast=True)
    sample = tl.load(rows_ptr + 2 * row + 1).to(tl.uint32, bitcast=True)
    low = tl.load(seed_ptr).to(tl.uint32, bitcast=True)
    high = tl.load(seed_ptr + 1).to(tl.uint32, bitcast=True)
    counter = counter.to(tl.uint32, bitcast=True)
    step = step.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = _philox(counter, slice_index, sample, step, low, high)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [4 * BLOCK])


@triton.jit
def _not_finite(value):
    """1 where a float32 is infinite or NaN."""
    return ((value.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000).to(tl.int32)


@triton.jit(do_not_specialize=["i"])
def _step(
    x_ptr,  # (B, 3, P) fp32, P = H·W
    estimates_ptr,  # (HISTORY + 1, B, 3, P) fp32
    fused_ptr,  # (B, 4, P) fp32
    broken_ptr,  # (B,) int32
    eps_ptr,  # (B, 3, H, W), any strides
    logits_ptr,  # (B, 4, H, W), any strides
    table_ptr,  # (K, COLUMNS) fp32
    rows_ptr,  # (B, 2) int32: slice, sample
    seed_ptr,  # (2,) int32: low, high
    i,
    P,
    W,
    eps_b,
    eps_c,
    eps_h,
    eps_w,
    logits_b,
    logits_c,
    logits_h,
    logits_w,
    HISTORY: tl.constexpr,
    NOISY: tl.constexpr,
    LOW: tl.constexpr,  # None: x0 is not clipped
    HIGH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per (BLOCK counters of each channel, batch row)."""
    row = tl.program_id(1).to(tl.int64)  # int64: every offset that grows with B
    slot_stride = tl.num_programs(1).to(tl.int64) * 3 * P
    x_ptr += row * 3 * P
    estimates_ptr += row * 3 * P
    fused_ptr += row * 4 * P
    eps_ptr += row * eps_b
    logits_ptr += row * logits_b
    table_ptr += i * COLUMNS
    alpha, sigma = tl.load(table_ptr + 1), tl.load(table_ptr + 2)
    coef_x, coef_x0 = tl.load(table_ptr + 3), tl.load(table_ptr + 4)
    coef_noise, mask_weight = tl.load(table_ptr + 8), tl.load(table_ptr + 9)
    newest = estimates_ptr + (i % (HISTORY + 1)) * slot_stride
    bad = tl.zeros([4 * BLOCK], tl.int32)

    for c in tl.static_range(3):
        # The counters whose first element is in channel c. Where P is no multiple of 4 the last
        # one reaches into the next channel, or two where P < 3.
        begin, end = (c * P + 3) // 4, ((c + 1) * P + 3) // 4
        begin += tl.program_id(0) * BLOCK
        at = 4 * begin + tl.arange(0, 4 * BLOCK)
        ok = (at < 4 * end) & (at < 3 * P)
        channel = c + (at >= (c + 1) * P).to(tl.int32) + (at >= (c + 2) * P).to(tl.int32)
        pixel = at - channel * P
        where = channel.to(tl.int64) * eps_c
        where += (pixel // W).to(tl.int64) * eps_h + (pixel % W).to(tl.int64) * eps_w
        eps = tl.load(eps_ptr + where, ok, 0.0).to(tl.float32)
        bad |= _not_finite(eps)

        x = tl.load(x_ptr + at, ok, 0.0)
        x0 = tl.div_rn(x - sigma * eps, alpha)
        if LOW is not None:  # as comparisons, which a NaN passes unchanged
            x0 = tl.where(x0 < LOW, LOW, x0)
            x0 = tl.where(x0 > HIGH, HIGH, x0)
        tl.store(newest + at, x0, ok)
        x = coef_x * x + coef_x0 * x0
        for k in tl.static_range(1, HISTORY + 1):
            coef = tl.load(table_ptr + 4 + k)
            slot = estimates_ptr + ((i + HISTORY + 1 - k) % (HISTORY + 1)) * slot_stride
            # Before row k the slot holds what an earlier run left: 0 · NaN is NaN.
            counts = tl.full([4 * BLOCK], coef, tl.float32) != 0.0
            x += coef * tl.load(slot + at, ok & counts, 0.0)
        if NOISY:
            counter = begin + tl.arange(0, BLOCK)
            x += coef_noise * _noise(counter, rows_ptr, row, seed_ptr, i + 1, BLOCK)
        tl.store(x_ptr + at, x, ok)

    pixel = tl.program_id(0) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    ok = pixel < P
    where = (pixel // W).to(tl.int64) * logits_h + (pixel % W).to(tl.int64) * logits_w
    weighted = ok & (tl.full([4 * BLOCK], mask_weight, tl.float32) != 0.0)
    for c in tl.static_range(4):
        logits = tl.load(logits_ptr + where, ok, 0.0).to(tl.float32)
        logits_ptr += logits_c
        bad |= _not_finite(logits)
        fused = tl.load(fused_ptr + c * P + pixel, weighted, 0.0)
        tl.store(fused_ptr + c * P + pixel, fused + mask_weight * logits, weighted)
    # A minimum of integers does not depend on the order, nor does anything here read it.
    tl.atomic_min(broken_ptr + row, i, tl.max(bad, 0) != 0, sem="relaxed")


@triton.jit
def _start(
    x_ptr,  # (B, N) fp32
    guess_ptr,  # like x, or None
    table_ptr,  # (K, COLUMNS) fp32
    rows_ptr,  # (B, 2) int32: slice, sample
    seed_ptr,  # (2,) int32: low, high
    N,
    BLOCK: tl.constexpr,
):
    """One program per (BLOCK counters, batch row)."""
    row = tl.program_id(1).to(tl.int64)
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.program_id(0) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    x = _noise(counter, rows_ptr, row, seed_ptr, tl.full((), 0, tl.int32), BLOCK)
    if guess_ptr is not None:
        guess = tl.load(guess_ptr + row * N + at, at < N, 0.0)
        x = tl.load(table_ptr + 1) * guess + tl.load(table_ptr + 2) * x
    tl.store(x_ptr + row * N + at, x, at < N)


def launch(
    x: Tensor,
    estimates: Tensor,
    fused: Tensor,
    broken: Tensor,
    eps: Tensor,
    logits: Tensor,
    table: Tensor,
    rows: Tensor,
    seed: Tensor,
    i: int,
    history: int,
    noisy: bool,
    x0_range: Sequence[float],
) -> None:
    """`solver_step` of arguments that were checked."""
    B, _, H, W = x.shape
    low, high = x0_range or (None, None)
    grid = (triton.cdiv(H * W, 4 * BLOCK), B)
    buffers = (x, estimates, fused, broken, eps, logits, table, rows, seed)
    strides = (*eps.stride(), *logits.stride())
    constants = {"HISTORY": history, "NOISY": noisy, "LOW": low, "HIGH": high, "COLUMNS": COLUMNS}
    _step[grid](
        *buffers, i, H * W, W, *strides, **constants, BLOCK=BLOCK, num_warps=2,
        enable_fp_fusion=False,
    )  # fmt: skip


def launch_start(
    x: Tensor, guess: Tensor | None, table: Tensor, rows: Tensor, seed: Tensor
) -> None:
    """`solver_start` of arguments that were checked."""
    size = x.shape[1:].numel()
    grid = (triton.cdiv(size, 4 * BLOCK), len(x))
    _start[grid](
        x, guess, table, rows, seed, size, BLOCK=BLOCK, num_warps=2, enable_fp_fusion=False
    )
