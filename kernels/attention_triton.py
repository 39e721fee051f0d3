"""The GPU kernel of `tadiff_kernels.attention`: flash-style forward with an S / (1 + S) epilogue.

Blocks of keys pass by a block of queries (Dao et al. 2022) whose maximum and sum follow along
(Milakov and Gimelshein 2018), in fp32. Weights are rounded to the dtype of `qkv` for the second
product, as in the reference. Products are tensor-core instructions with fp32 sums in half
precision and IEEE fp32 otherwise.

Why blocks of 64 keys, and 128 queries where there is enough work (derived, not measured): at head
widths of 24 and 32 the exponentials bound the kernel, not the products. A multiprocessor of an
H100 does 16 of them a cycle (CUDA C++ Programming Guide, table of throughputs), so 2,304 tokens
and 4 heads take 21 million, 5.7 us on 132 multiprocessors at 1.755 GHz. Meanwhile every block of
queries reads all keys and values of its head, 32-byte sectors of L2: 42 MB with 64 queries a
block, half of that with 128. Sixteen queries a warp and 64 keys keep scores, weights and sums of a
thread below 96 registers at these widths, so 16 warps or more are resident on a multiprocessor:
some exponentiate while others multiply.

A block of queries does not change the bits of a row, a block of keys would. So the former may
depend on the batch and the latter may not.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MANY = 8 * 132
"""Programs of 128 queries from which on they are used: four waves of two a multiprocessor of an
H100. With fewer, smaller ones leave fewer multiprocessors idle at the end."""


@triton.jit
def _attention_kernel(
    qkv_ptr,  # (B, L, 3·HEADS·D)
    out_ptr,  # (B, L, HEADS·D)
    L,
    SCALE: tl.constexpr,  # log2(e) / sqrt(D): exp(x - max) is 2 to a difference
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D padded to a power of two, in registers only
    TAIL: tl.constexpr,  # L is no multiple of BLOCK_N
    BLOCK_M: tl.constexpr,  # queries
    BLOCK_N: tl.constexpr,  # keys
):
    """One program per (BLOCK_M queries, head, sample)."""
    # int64: B·L·3·C can pass 2³¹; the offsets inside a sample cannot, see `MOST_ELEMENTS`.
    head, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    ROW: tl.constexpr = 3 * HEADS * D
    C: tl.constexpr = HEADS * D
    q_ptr = qkv_ptr + sample * L * ROW + head * 3 * D
    channels = tl.arange(0, WIDTH)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (queries[:, None] < L) & (channels[None, :] < D)
    q = tl.load(q_ptr + queries[:, None] * ROW + channels[None, :], inside, 0.0)

    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    shift = top
    # With two buffers for products, which Triton gives them on sm_100, registers spill there.
    for start in tl.range(0, L, BLOCK_N, disallow_acc_multi_buffer=True):
        keys = start + tl.arange(0, BLOCK_N)
        present = channels[None, :] < D
        if TAIL:
            present &= keys[:, None] < L
        k_ptr = q_ptr + D + keys[:, None] * ROW + channels[None, :]
        k = tl.load(k_ptr, present, 0.0)
        v = tl.load(k_ptr + D, present, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if TAIL:
            scores = tl.where(keys[None, :] < L, scores, float("-inf"))  # 0 could be the maximum
        top = tl.maximum(top, tl.max(scores, 1))
        new_shift = top * SCALE
        keep = tl.exp2(shift - new_shift)
        p = tl.exp2(tl.fma(scores, SCALE, -new_shift[:, None]))
        total = tl.fma(total, keep, tl.sum(p, 1))
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
        shift = new_shift

    # The 1 of 1 + S is the weight of the largest score: 2 to what rounding left of its exponent.
    one = tl.exp2(tl.fma(top, SCALE, -shift))
    y = acc / (one + total)[:, None]
    at = queries[:, None] * C + channels[None, :]
    tl.store(out_ptr + sample * L * C + head * D + at, y.to(out_ptr.dtype.element_ty), inside)


def tiling(
    B: int, L: int, num_heads: int, d: int, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and compiler options of the kernel for qkv (B, L, 3 · num_heads · d).

    The compiler fuses nothing by itself: `shift` must be the rounded product wherever it is used.
    """
    width = max(16, triton.next_power_of_2(d))
    if dtype == torch.float32:  # what a product of registers has room for
        block_m, block_n, num_warps, num_stages = 64, 32 if width <= 64 else 16, 8, 2
    else:
        block_m = 128 if B * num_heads * triton.cdiv(L, 128) >= MANY else 64
        block_n, num_warps, num_stages = 64, block_m // 16, 3
    constants = {
        "SCALE": math.log2(math.e) / math.sqrt(d),
        "HEADS": num_heads,
        "D": d,
        "WIDTH": width,
        "TAIL": L % block_n != 0,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
    }
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False}
    return constants, options


def launch(qkv: Tensor, num_heads: int, out: Tensor) -> None:
    """Writes `tadiff::attention` of checked arguments to `out`: (b, l, c), contiguous."""
    B, L, C = out.shape
    if B == 0:
        return
    constants, options = tiling(B, L, num_heads, C // num_heads, qkv.dtype)
    grid = (triton.cdiv(L, constants["BLOCK_M"]), num_heads, B)
    _attention_kernel[grid](qkv, out, L, **constants, **options)
