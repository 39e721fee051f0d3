"""Triton kernels of `tadiff_kernels.ensemble_step`, in float32 pairs and without float64.

Welford's recurrence on unevaluated sums hi + lo (Dekker 1971; Knuth, TAOCP 2, section 4.2.2). With
u^2 = 2^-48, the relative error is at most 3 u^2 of a sum and of a quotient by a float, 2 u^2 of
pair plus float, 5 u^2 of a product (Joldes, Muller and Popescu 2017; Muller and Rideau 2022). That
a result is trimmed to a float64 adds u^2 / 16. To first order in u^2, after n samples of a voxel
with |x| <= X,

    mean                       E = (12 + 1.6 n) u^2 X
    sum of squares S           (9 + 3.2 n) u^2 S + 2.9 sqrt(n S) E
    pair and probability sum   3.2 n u^2 of the sum, the rounding of each sigmoid apart

Sample k moves the mean by (x - mean) / k with an error of 5 u^2 of that, |x - mean| <= 2 X, and
the sum adds 3 u^2 X; an earlier error shrinks by 1 - 1/k. So k times the error grows by
(10 + 3 k) u^2 X. A term of the squares is d (x - mean) with d = x - earlier mean, |x - mean| <=
|d|: both means are off by at most E, and rounding adds 9 u^2 of the term. S >= sum d^2 / 2, so
both factors together lose at most 2 E sum |d| <= 2 E sqrt(2 n S). For the standard deviation of 5
samples all that is below 2^-42 X.

The sigmoid is within 2^-22 of its value, and 0 beyond -87. Every operation is an integer one or an
IEEE-754 one rounded to nearest: the same bits on every GPU and in Triton's interpreter. The
compiler must not fuse a * b + c by itself: launches say `enable_fp_fusion=False`.
"""

import triton
import triton.language as tl
from torch import Tensor

from tadiff_kernels.ensemble_step import TARGET_SLOT
from tadiff_kernels.philox_triton import _sum

BLOCK = 512
"""Elements of a program, four a thread, 16 bytes of every array: one slice of 192 x 192 is 216
programs of images, for the 132 multiprocessors of an H100. Not yet tuned on a GPU."""


@triton.jit
def _two_sum(a, b):
    """a + b as hi + lo, exactly: Knuth."""
    hi = a + b
    part = hi - a
    return hi, (a - (hi - part)) + (b - part)


@triton.jit
def _add(a, a_lo, b, b_lo):
    """Sum of two pairs."""
    hi, lo = _two_sum(a, b)
    low, low_lo = _two_sum(a_lo, b_lo)
    hi, lo = _sum(hi, lo + low)
    return _sum(hi, lo + low_lo)


@triton.jit
def _plus(a, a_lo, x):
    """Sum of a pair and a float."""
    hi, lo = _two_sum(a, x)
    return _sum(hi, lo + a_lo)


@triton.jit
def _quotient(a, a_lo, n):
    """A pair over a float."""
    hi = tl.div_rn(a, n)
    product = hi * n
    rest = (a - product) - tl.fma(hi, n, -product)
    return _sum(hi, tl.div_rn(rest + a_lo, n))


@triton.jit
def _product(a, a_lo, b, b_lo):
    """Product of two pairs."""
    hi = a * b
    return _sum(hi, tl.fma(a, b, -hi) + tl.fma(a_lo, b, a * b_lo))


@triton.jit
def _as_float64(hi, lo):
    """lo without the bits that the float64 hi + lo has no place for: below 2^-52 of hi's power."""
    bits = lo.to(tl.int32, bitcast=True)
    apart = ((hi.to(tl.int32, bitcast=True) >> 23) & 0xFF) - ((bits >> 23) & 0xFF)
    spare = tl.minimum(tl.maximum(apart - 29, 0), 24)
    kept = ((bits >> spare) << spare).to(tl.float32, bitcast=True)
    return hi, tl.where(spare > 23, 0.0, kept)


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)); NaN of NaN."""
    # exp(-|x|) = 2^n exp(r), |r| <= log(2) / 2; the first term left out, r^8 / 8!, is 2^-27.
    a = tl.abs(x)
    y = -tl.where(a > 88.0, 88.0, a)
    shifted = y * 1.4426950408889634 + 12582912.0  # 1.5 · 2^23: n ends up in the last bits
    n = shifted - 12582912.0
    r = tl.fma(n, -0.693145751953125, y)  # the first 16 bits of log(2): n times it is exact
    r = tl.fma(n, -1.4286068203094173e-06, r)
    e = tl.fma(r, tl.fma(r, 1 / 5040, 1 / 720), 1 / 120)
    e = tl.fma(r, tl.fma(r, tl.fma(r, e, 1 / 24), 1 / 6), 0.5)
    e = tl.fma(r, tl.fma(r, e, 1.0), 1.0)
    exponent = shifted.to(tl.int32, bitcast=True) - 0x4B400000 + 127
    e = tl.where(a > 87.0, 0.0, e * (exponent << 23).to(tl.float32, bitcast=True))
    return tl.div_rn(tl.where(x < 0.0, e, 1.0), 1.0 + e)


@triton.jit(do_not_specialize=["SAMPLES"])
def _images(
    sums_ptr,  # (slots, 8, N) fp32, N = 3·P elements of an image
    counts_ptr,  # (slots, SAMPLES, 2) int32
    images_ptr,  # (B, N) fp32
    segments_ptr,  # (s, 4) int32: first row, rows, slot, samples done
    N,
    SAMPLES,
    BLOCK: tl.constexpr,
):
    """One program per (BLOCK elements, segment): mean, squares and pair differences."""
    segments_ptr += 4 * tl.program_id(1)
    first, rows = tl.load(segments_ptr).to(tl.int64), tl.load(segments_ptr + 1)
    slot, done = tl.load(segments_ptr + 2).to(tl.int64), tl.load(segments_ptr + 3)
    if rows == 0:
        return
    if tl.program_id(0) == 0:  # `_masks`, launched after this kernel, adds to them
        counts_ptr += (slot * SAMPLES + done) * 2
        for k in range(0, 2 * rows, BLOCK):
            entry = k + tl.arange(0, BLOCK)
            tl.store(counts_ptr + entry, tl.zeros([BLOCK], tl.int32), entry < 2 * rows)

    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = at < N
    held = ok & (tl.full([BLOCK], done, tl.int32) > 0)
    sums_ptr += slot * 8 * N + at
    images_ptr += first * N + at
    mean, mean_lo = tl.load(sums_ptr, held, 0.0), tl.load(sums_ptr + N, held, 0.0)
    squares, squares_lo = (
        tl.load(sums_ptr + 2 * N, held, 0.0),
        tl.load(sums_ptr + 3 * N, held, 0.0),
    )
    pairs, pairs_lo = tl.load(sums_ptr + 4 * N, held, 0.0), tl.load(sums_ptr + 5 * N, held, 0.0)
    last = tl.load(sums_ptr + 6 * N, held, 0.0)
    for k in range(rows):
        x = tl.load(images_ptr, ok, 0.0)
        images_ptr += N
        apart, apart_lo = _two_sum(x, -last)
        sign = tl.where(apart < 0.0, -1.0, 1.0)
        sign = tl.where(done + k == 0, 0.0, sign)  # the first has none before it
        pairs, pairs_lo = _add(pairs, pairs_lo, sign * apart, sign * apart_lo)
        last = x

        before, before_lo = _plus(-mean, -mean_lo, x)
        step, step_lo = _quotient(before, before_lo, (done + k + 1).to(tl.float32))
        mean, mean_lo = _add(mean, mean_lo, step, step_lo)
        mean, mean_lo = _as_float64(mean, mean_lo)
        after, after_lo = _plus(-mean, -mean_lo, x)
        term, term_lo = _product(before, before_lo, after, after_lo)
        squares, squares_lo = _add(squares, squares_lo, term, term_lo)
        # After every sample, or where a batch ends would show.
        squares, squares_lo = _as_float64(squares, squares_lo)
        pairs, pairs_lo = _as_float64(pairs, pairs_lo)
    tl.store(sums_ptr, mean, ok)
    tl.store(sums_ptr + N, mean_lo, ok)
    tl.store(sums_ptr + 2 * N, squares, ok)
    tl.store(sums_ptr + 3 * N, squares_lo, ok)
    tl.store(sums_ptr + 4 * N, pairs, ok)
    tl.store(sums_ptr + 5 * N, pairs_lo, ok)
    tl.store(sums_ptr + 6 * N, last, ok)


@triton.jit(do_not_specialize=["SAMPLES"])
def _masks(
    sums_ptr,  # (slots, 24, P) fp32
    counts_ptr,  # (slots, SAMPLES, 2) int32
    logits_ptr,  # (B, 4, P) fp32
    inside_ptr,  # (P,) uint8
    segments_ptr,  # (s, 4) int32: first row, rows, slot, samples done
    P,
    SAMPLES,
    TARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per (BLOCK voxels, segment): probabilities, tumour voxels and overlaps."""
    segments_ptr += 4 * tl.program_id(1)
    first, rows = tl.load(segments_ptr).to(tl.int64), tl.load(segments_ptr + 1)
    slot, done = tl.load(segments_ptr + 2).to(tl.int64), tl.load(segments_ptr + 3)
    if rows == 0:
        return
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = at < P
    held = ok & (tl.full([BLOCK], done, tl.int32) > 0)
    inside = tl.load(inside_ptr + at, ok, 0) != 0
    sums_ptr += slot * 24 * P + at
    logits_ptr += (first * 4 + TARGET) * P + at
    counts_ptr += (slot * SAMPLES + done) * 2
    total, total_lo = tl.load(sums_ptr + 21 * P, held, 0.0), tl.load(sums_ptr + 22 * P, held, 0.0)
    last = tl.load(sums_ptr + 23 * P, held, 0.0)
    for _ in range(rows):
        logit = tl.load(logits_ptr, ok, 0.0)
        logits_ptr += 4 * P
        probability = tl.where(inside, _sigmoid(logit), 0.0)
        total, total_lo = _plus(total, total_lo, probability)
        total, total_lo = _as_float64(total, total_lo)
        # A probability above 1/2 in float64, as `mask_probability` rounds it: there 1/2 + logit/4
        # is 1/2 up to logit = 2^-52, a tie that goes to the even neighbour.
        mask = tl.where(inside & (logit > 2.220446049250313e-16), 1.0, 0.0)
        # Integers: the order of adding does not matter.
        area, overlap = mask.to(tl.int32), (mask * last).to(tl.int32)
        tl.atomic_add(counts_ptr, tl.sum(area, 0), sem="relaxed")
        tl.atomic_add(counts_ptr + 1, tl.sum(overlap, 0), sem="relaxed")
        counts_ptr += 2
        last = mask
    tl.store(sums_ptr + 21 * P, total, ok)
    tl.store(sums_ptr + 22 * P, total_lo, ok)
    tl.store(sums_ptr + 23 * P, last, ok)


def launch(
    sums: Tensor, counts: Tensor, images: Tensor, logits: Tensor, inside: Tensor, segments: Tensor
) -> None:
    """`ensemble_step` of arguments that were checked."""
    P, samples, s = inside.numel(), counts.shape[1], len(segments)
    _images[(triton.cdiv(3 * P, BLOCK), s)](
        sums, counts, images, segments, 3 * P, samples, BLOCK=BLOCK, enable_fp_fusion=False
    )
    _masks[(triton.cdiv(P, BLOCK), s)](
        sums,
        counts,
        logits,
        inside,
        segments,
        P,
        samples,
        TARGET=TARGET_SLOT,
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )
