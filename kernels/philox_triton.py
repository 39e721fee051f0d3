"""Philox and Box-Muller in Triton, without float64: the device form of `tadiff_rt.noise`.

Radius and trigonometric functions are carried as unevaluated sums hi + lo of two float32 (Dekker
1971; Knuth, TAOCP 2, section 4.2.2), so that only the final rounding matters.

Largest relative errors of the kernel before that rounding. Each comes from the tail of a series
that is kept in one float32: six roundings of 2^-24 (the argument twice, its square, two in the
polynomial, the product) times the largest tail, and the first term left out. The root halves the
error of the logarithm.

                tail, its size           left out, its size    bound
    radius      s^4/5 …        0.00018   s^12/13       2^-34   2^-33
    cosine      theta^6/720 …  0.00045   theta^12/12!  2^-32   2^-31
    sine        theta^4/120 …  0.0035    theta^13/13!  2^-36   2^-29.6
    product                                                    2^-45

Together below 2^-29.4, 1/40 of the distance between neighbouring floats: a normal is the float32
of the definition or, where a rounding boundary lies between the two, its neighbour. So for every
pair of words the difference is at most 1 ulp. A `gpu` test holds all 2^32 words of either kind
against these bounds; without a GPU, tests do for adversarial and random words.

Every operation is an integer one or an IEEE-754 add, multiply, fused multiply-add, divide or root
rounded to nearest; hence the same bits on every GPU and in Triton's interpreter. The compiler must
not fuse a * b + c by itself: launch with `enable_fp_fusion=False`.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # counters of a program, one a thread of four warps; not yet tuned on a GPU


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on uint32."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _sum(a, b):
    """a + b as hi + lo, exactly, where |a| >= |b| or a = 0: Dekker 1971."""
    hi = a + b
    return hi, b - (hi - a)


@triton.jit
def _product_of_sum(x, x_lo, c, c_lo, y, y_lo):
    """(x + x_lo) · (c + c_lo + y + y_lo) as hi + lo, to 2^-45, where |c| >= |y|."""
    m, m_lo = _sum(c, y)
    m_lo += c_lo + y_lo
    hi = x * m
    return hi, tl.fma(x, m, -hi) + tl.fma(x, m_lo, x_lo * m)


@triton.jit
def _square(x, x_lo):
    """(x + x_lo)² as hi + lo."""
    hi = x * x
    return hi, tl.fma(x, x, -hi) + 2.0 * x * x_lo


@triton.jit
def _radius(w):
    """sqrt(-2 log((w + 1) / 2^32)) as hi + lo.

    n = w + 1 = 2^e (1 + s) / (1 - s) with |s| <= 0.172, so log(n) = e log 2 + 2 atanh(s). At
    e = 32, near u = 1, log(u) is the second term alone and keeps its relative accuracy.
    """
    # Both halves are exact, and so is top - power: at e >= 16 a multiple of 2^16 below 2^33.
    top = (w >> 16).to(tl.float32) * 65536.0
    low = (w & 0xFFFF).to(tl.float32) + 1.0
    # The bits of sqrt(1/2): n / 2^e lies in sqrt(1/2) to sqrt(2).
    e = ((top + low).to(tl.int32, bitcast=True) - 0x3F3504F3) >> 23
    power = ((e + 127) << 23).to(tl.float32, bitcast=True)
    a, a_lo = _sum(top - power, low)  # n - 2^e; |top - power| >= low, or the sum is exact
    b, b_lo = _sum(2.0 * power, a)  # n + 2^e
    b_lo += a_lo
    inverse = tl.div_rn(1.0, b)
    s = a * inverse
    s_lo = (tl.fma(-s, b, a) + (a_lo - s * b_lo)) * inverse

    # atanh(s) = s (1 + s²/3 + s⁴/5 + …); the first term left out, s^12/13, is 2^-34.
    t, t_lo = _square(s, s_lo)
    tail = t * tl.fma(t, tl.fma(t, tl.fma(t, 1 / 11, 1 / 9), 1 / 7), 1 / 5)
    v, v_lo = _product_of_sum(t, t_lo, 0.3333333433674408, -9.934107758624577e-09, tail, 0.0)
    g, g_lo = _product_of_sum(s, s_lo, 1.0, 0.0, v, v_lo)

    # r² = 2 (32 - e) log 2 - 4 atanh(s). The high part of 2 log 2 has 18 bits: an exact product.
    k = (32 - e).to(tl.float32)
    m, m_lo = _sum(k * 1.38629150390625, -4.0 * g)
    m, m_lo = _sum(m, m_lo + (k * 2.857213530660374e-06 - 4.0 * g_lo))
    r = tl.sqrt_rn(m)
    # One step of Newton's method; the bound keeps u = 1 from 0 / 0.
    return r, tl.div_rn(tl.fma(-r, r, m) + m_lo, tl.maximum(2.0 * r, 1e-30))


@triton.jit
def _quadrant(w):
    """(q, theta, theta_lo): the angle of the definition is q pi/2 + theta, |theta| <= pi/4.

    The definition rounds its angle a = 2 pi w / 2^32 to float64, and its double 2 pi is not 2 pi.
    Beside a zero of sine or cosine that shows: at a = pi/2 the definition's cosine is 6.1e-17. So
    theta = k 2 pi / 2^32 - q (2 pi - double) / 4 + (rounding of the product), k = w - q 2^30.
    """
    q = ((w >> 29) + 1) >> 1  # 0 … 4, nearest
    k = tl.sub(w, q << 30, sanitize_overflow=False).to(tl.int32, bitcast=True)
    q = q.to(tl.int32)
    # double = M 2^-50, so the exact product is M w 2^-82. For w near q 2^30 it has 53 + s bits,
    # s = 30, 31, 32, 32 for q = 1 … 4: what rounding adds is minus its s low bits taken as signed.
    # Far from q 2^30 s may be another, where the term is below 2^-50 and theta above 0.1. Near
    # w = 0 the rounding is relative to a itself, and too small to matter.
    spare = tl.maximum(3 - q, 0)
    low = tl.mul(w, 0x54442D18, sanitize_overflow=False).to(tl.int32, bitcast=True)
    rounding = tl.where(q == 0, 0, -((low << spare) >> spare)).to(tl.float32)
    # (2 pi - double) / 4 in two parts, for w = q 2^30 where theta is nothing else. q times the
    # first, of 18 bits, is exact.
    turns = q.to(tl.float32)
    shift = rounding * 2.0679515313825692e-25 - turns * 6.123222351525019e-17

    hi = k.to(tl.float32)
    lo = (k - hi.to(tl.int32)).to(tl.float32)
    theta = hi * 1.462918119976564e-09
    error = tl.fma(hi, 1.462918119976564e-09, -theta)
    theta_lo = tl.fma(lo, 1.462918119976564e-09, tl.fma(hi, -4.070940267922164e-17, error))
    theta, theta_lo = _sum(theta, theta_lo + shift)
    return q, theta, theta_lo - turns * 1.164421173889907e-22


@triton.jit
def _cos_sin(x, x_lo):
    """Cosine and sine of x + x_lo, |x| <= pi/4, as (hi, lo, hi, lo): their Taylor series."""
    t, t_lo = _square(x, x_lo)
    tail = tl.fma(t, tl.fma(t, -1 / 3628800, 1 / 40320), -1 / 720)
    v, v_lo = _product_of_sum(t, t_lo, 0.0416666679084301, -1.2417634698280722e-09, t * tail, 0.0)
    v, v_lo = _product_of_sum(t, t_lo, -0.5, 0.0, v, v_lo)
    c, c_lo = _sum(1.0, v)

    tail = tl.fma(t, tl.fma(t, tl.fma(t, -1 / 39916800, 1 / 362880), -1 / 5040), 1 / 120)
    u, u_lo = _product_of_sum(t, t_lo, -0.1666666716337204, 4.967053879312289e-09, t * tail, 0.0)
    s, s_lo = _product_of_sum(x, x_lo, 1.0, 0.0, u, u_lo)
    return c, c_lo + v_lo, s, s_lo


@triton.jit
def _direction(w):
    """Cosine and sine of the angle 2 pi w / 2^32 as (hi, lo, hi, lo)."""
    q, theta, theta_lo = _quadrant(w)
    c, c_lo, s, s_lo = _cos_sin(theta, theta_lo)
    # cos(q pi/2 + theta) = c, -s, -c, s and sin = s, c, -s, -c for q = 0 … 3.
    odd = (q & 1) == 1
    x, x_lo = tl.where(odd, s, c), tl.where(odd, s_lo, c_lo)
    y, y_lo = tl.where(odd, c, s), tl.where(odd, c_lo, s_lo)
    x_sign = tl.where(((q + 1) & 2) == 2, -1.0, 1.0)
    y_sign = tl.where((q & 2) == 2, -1.0, 1.0)
    return x_sign * x, x_sign * x_lo, y_sign * y, y_sign * y_lo


@triton.jit
def _rounded_product(a, a_lo, b, b_lo):
    """(a + a_lo) (b + b_lo), rounded once."""
    hi = a * b
    return hi + (tl.fma(a, b, -hi) + tl.fma(a, b_lo, a_lo * b))


@triton.jit
def _box_muller(radius_word, angle_word):
    """Two normals of two words."""
    r, r_lo = _radius(radius_word)
    x, x_lo, y, y_lo = _direction(angle_word)
    return _rounded_product(r, r_lo, x, x_lo), _rounded_product(r, r_lo, y, y_lo)


@triton.jit
def _normal_kernel(
    draw_ptr,  # (3,) int32: seed low, seed high, step
    rows_ptr,  # (B, 2) int32: slice, sample
    out_ptr,  # (B, N) fp32
    N,
    BLOCK: tl.constexpr,
):
    """One program per (BLOCK counters, row): four elements a counter."""
    row = tl.program_id(1)
    seed_low = tl.load(draw_ptr).to(tl.uint32, bitcast=True)
    seed_high = tl.load(draw_ptr + 1).to(tl.uint32, bitcast=True)
    step = tl.load(draw_ptr + 2).to(tl.uint32, bitcast=True)
    slice_index = tl.load(rows_ptr + 2 * row).to(tl.uint32, bitcast=True)
    sample = tl.load(rows_ptr + 2 * row + 1).to(tl.uint32, bitcast=True)

    block = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = _philox(block, slice_index, sample, step, seed_low, seed_high)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [4 * BLOCK])
    at = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    # int64: B · N can pass 2³¹, and so can the padding of the last block
    tl.store(out_ptr + row.to(tl.int64) * N + at, z, at < N)


def launch(draw: Tensor, rows: Tensor, out: Tensor) -> None:
    """Fills `out`; see `philox.normal`."""
    size = out[0].numel()
    grid = (triton.cdiv(size, 4 * BLOCK), len(out))
    _normal_kernel[grid](draw, rows, out, size, BLOCK=BLOCK, enable_fp_fusion=False)
