"""`conditioning` on a GPU: embeddings of all steps and sessions, then one small product.

Every embedding is computed once, by one program: n of time, four of days, four of treatments. The
second kernel adds them up where it reads them. The columns of the product that meet the sessions'
differences are the same in every row; each tile sums them once, so that a row costs mc and not
4 mc multiplications a channel.

No approximate instruction: exponential, sine and cosine are reduced and summed here (Cody and
Waite 1980, with fused multiply-adds in place of short constants; Taylor series), in float32. The
library's sine carries a path through local memory for angles above 105,615 (CUDA C++ Programming
Guide); this one has no branch and needs none.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

EMBED_TILE = 4096
"""Weights of one layer that a program of 128 threads holds in registers at a time."""
BLOCK_N = 16
"""Solver steps of a tile of the product."""
BLOCK_P = 32
"""Channels of a tile: one line of memory, and 232 programs for 50 steps of the published network.
Not yet tuned on a GPU."""
PROJECT_STAGES = 1
"""More would stage weights through shared memory, one wait after the other."""


@triton.jit
def _cosine(x, is_sine):
    """cos(x), or sin(x) = cos(x - pi/2) where `is_sine`, to 1.3 · 2^-24 for |x| <= 2^17."""
    # x 2/pi to the nearest integer q: the sum with 1.5 2^23 leaves it in the lowest bits.
    shifted = x * 0.6366197466850281 + 12582912.0
    q = shifted - 12582912.0
    quadrant = shifted.to(tl.int32, bitcast=True) + tl.where(is_sine, 3, 0)
    # x - q pi/2 with pi/2 in three parts. The first difference is exact: a multiple of 2^-24
    # below 1. What the second rounds off is kept.
    first = tl.fma(-q, 1.5707963705062866, x)
    r = tl.fma(-q, -4.371138828673793e-08, first)
    r_lo = tl.fma(-q, -4.371138828673793e-08, first - r) + q * 1.7151245100058819e-15
    y = r * r
    s = tl.fma(y, tl.fma(y, tl.fma(y, 1 / 362880, -1 / 5040), 1 / 120), -1 / 6)
    s = r + tl.fma(r * y, s, r_lo)
    c = tl.fma(y, tl.fma(y, tl.fma(y, -1 / 3628800, 1 / 40320), -1 / 720), 1 / 24)
    c = 1.0 - tl.fma(-y * y, c, tl.fma(0.5, y, r * r_lo))
    # cos(q pi/2 + r) = c, -s, -c, s for q = 0 … 3.
    value = tl.where((quadrant & 1) == 1, s, c)
    return tl.where(((quadrant + 1) & 2) == 2, -value, value)


@triton.jit
def _silu(x):
    """x / d with d = 1 + exp(-x), to 3 · 2^-24 of itself for x >= -10.

    A rounded division would be exact to 0.5, but branches for its rare cases.
    """
    # exp(-x) = 2^k exp(r) with |r| <= log(2) / 2. Beyond the bounds d is 1 or above 1e34. What
    # log 2 rounded to a float32 leaves out, 2e-9 k, is below 2^-25 for x >= -10.
    a = tl.minimum(tl.maximum(-x, -80.0), 80.0)
    shifted = a * 1.4426950216293335 + 12582912.0
    k = shifted - 12582912.0
    r = tl.fma(-k, 0.6931471824645996, a)
    e = tl.fma(r, tl.fma(r, 1 / 5040, 1 / 720), 1 / 120)
    e = tl.fma(r, tl.fma(r, tl.fma(r, tl.fma(r, e, 1 / 24), 1 / 6), 0.5), 1.0)
    e = tl.fma(r, e, 1.0)
    power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    d = tl.fma(e, power, 1.0)
    # For d = 2^n (1 + m) these bits are 2^-n (1 - m / 2), 1 to 9/8 of 1 / d; Newton's method
    # squares the error of 1/17 three times.
    y = (0x7F000000 - d.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True) * (16 / 17)
    for _ in tl.static_range(3):
        y = tl.fma(y, tl.fma(-d, y, 1.0), y)
    return x * y


@triton.jit(do_not_specialize=["N"])
def _embed(
    t_ptr,  # (N,)
    days_ptr,  # (4,)
    treatments_ptr,  # (4,)
    frequency_ptr,  # (2, MC / 2)
    hidden_weight_ptr,  # (3, MC, 2 MC)
    hidden_bias_ptr,  # (3, 2 MC)
    out_weight_ptr,  # (3, MC, 2 MC)
    out_bias_ptr,  # (3, MC)
    embedding_ptr,  # (N + 8, MC)
    N,
    MC: tl.constexpr,
    BLOCK_C: tl.constexpr,  # a power of two, at least MC
    BLOCK_H: tl.constexpr,  # divides 2 MC
):
    """One program per embedding: rows of time, then of days, then of treatments."""
    row = tl.program_id(0)
    network = tl.where(row < N, 0, tl.where(row < N + 4, 1, 2))
    t = tl.load(t_ptr + row, row < N, 0.0)
    day = tl.load(days_ptr + row - N, network == 1, 0.0)
    code = tl.load(treatments_ptr + row - N - 4, network == 2, 0.0)
    value = tl.where(network == 2, 6.2831854820251465 * ((code + 1.0) * 10.0), t + day)

    c = tl.arange(0, BLOCK_C)
    inside = c < MC
    out_bias = tl.load(out_bias_ptr + network * MC + c, inside, 0.0)
    at = (network // 2) * (MC // 2) + c % (MC // 2)
    x = _cosine(value * tl.load(frequency_ptr + at), c >= MC // 2)

    weights = network * (2 * MC * MC) + c[:, None] * (2 * MC)
    total = tl.zeros([BLOCK_C, BLOCK_H], tl.float32)
    for start in range(0, 2 * MC, BLOCK_H):
        j = start + tl.arange(0, BLOCK_H)
        w = tl.load(hidden_weight_ptr + weights + j[None, :], inside[:, None], 0.0)
        out_w = tl.load(out_weight_ptr + weights + j[None, :], inside[:, None], 0.0)
        bias = tl.load(hidden_bias_ptr + network * (2 * MC) + j)
        h = _silu(tl.sum(x[:, None] * w, 0) + bias)
        total += h[None, :] * out_w
    tl.store(embedding_ptr + row * MC + c, tl.sum(total, 1) + out_bias, inside)


@triton.jit(do_not_specialize=["N"])
def _project(
    embedding_ptr,  # (N + 8, MC)
    projection_ptr,  # (4 MC, P)
    bias_ptr,  # (P,)
    out_ptr,  # (N, P)
    N,
    MC: tl.constexpr,
    P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program per (BLOCK_P channels, BLOCK_N steps)."""
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.arange(0, 32)
    weight_ptrs = projection_ptr + k[:, None] * P + p[None, :]
    day_ptrs = embedding_ptr + N * MC + k
    treatment_ptrs = embedding_ptr + (N + 4) * MC + k
    bias = tl.load(bias_ptr + p, p < P, 0.0)

    fixed = tl.zeros([32, BLOCK_P], tl.float32)
    steps = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    for c in range(0, MC, 32):
        own = tl.load(treatment_ptrs + 3 * MC + c) + tl.load(day_ptrs + 3 * MC + c)
        for session in tl.static_range(3):
            at = session * MC + c
            other = tl.load(treatment_ptrs + at) + tl.load(day_ptrs + at)
            w = tl.load(weight_ptrs + at * P, p[None, :] < P, 0.0)
            fixed += _silu(other - own)[:, None] * w
        time = tl.load(
            embedding_ptr + rows[:, None] * MC + (c + k)[None, :], rows[:, None] < N, 0.0
        )
        w = tl.load(weight_ptrs + (3 * MC + c) * P, p[None, :] < P, 0.0)
        steps = tl.dot(_silu(time + own[None, :]), w, steps, input_precision="ieee")
    shift = tl.sum(fixed, 0) + bias
    at = rows.to(tl.int64)[:, None] * P + p[None, :]
    tl.store(out_ptr + at, steps + shift[None, :], (rows[:, None] < N) & (p[None, :] < P))


def embed_constants(mc: int) -> dict[str, int]:
    """Of `_embed` for embeddings of width `mc`."""
    block_c = triton.next_power_of_2(mc)
    return {"MC": mc, "BLOCK_C": block_c, "BLOCK_H": min(64, EMBED_TILE // block_c)}


def project_constants(mc: int, p: int) -> dict[str, int]:
    """Of `_project` for p channels of all blocks."""
    return {"MC": mc, "P": p, "BLOCK_N": BLOCK_N, "BLOCK_P": BLOCK_P}


def launch(t: Tensor, days: Tensor, treatments: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`conditioning` of checked arguments; reads no number on the host."""
    *embedding_weights, projection, bias = weights
    n, mc, p = len(t), len(projection) // 4, len(bias)
    out = t.new_empty(n, p)
    if n == 0:
        return out
    embedding = t.new_empty(n + 8, mc)
    _embed[(n + 8,)](t, days, treatments, *embedding_weights, embedding, n, **embed_constants(mc))
    grid = (triton.cdiv(p, BLOCK_P), triton.cdiv(n, BLOCK_N))
    constants = project_constants(mc, p)
    _project[grid](embedding, projection, bias, out, n, **constants, num_stages=PROJECT_STAGES)
    return out
