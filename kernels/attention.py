"""Self-attention weighted by `softmax_one`, straight from the projection that the network makes.

With scores x = q k^T / sqrt(d) of a query against all l keys, S = sum exp(x - max x) and

    out = sum_j w_j v_j,    w_j = exp(x_j - max x) / (1 + S)

which is what the published weights were trained with: softmax(x) S / (1 + S). It is neither
softmax nor "softmax1" (Miller 2023), which adds 1 before the maximum is subtracted and so depends
on the offset of the scores. A row of weights sums to between 1/2 and l / (l + 1).
"""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

QUERY_CHUNK = 192
"""Of 2,304 keys and 4 heads: 7 MB of weights, which stay in a processor's cache."""

WIDEST = 128
"""Largest head width: the accumulator of a block of queries lies in registers."""

MOST_ELEMENTS = 2**31 - 1
"""Of a sample: offsets in it are int32."""

MOST_PROGRAMS = 65_535
"""The limit of the second and the third axis of a CUDA grid: samples, and heads."""


def attention_reference(qkv: Tensor, num_heads: int) -> Tensor:
    """What `attention` computes, in plain PyTorch: the test oracle.

    Scores and weights are at least fp32; the second product is in the dtype of `qkv`. Holds all
    b num_heads l^2 weights at once. Takes float64, in which tests get the exact result.
    """
    B, L, three_c = qkv.shape
    d = three_c // (3 * num_heads)
    q, k, v = qkv.reshape(B, L, num_heads, 3, d).permute(3, 0, 2, 1, 4)  # each b heads l d
    wide = torch.promote_types(qkv.dtype, torch.float32)
    scores = (q.to(wide) * d**-0.5) @ k.to(wide).transpose(-1, -2)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = e / (1 + e.sum(-1, keepdim=True))
    return (weights.to(v.dtype) @ v).transpose(1, 2).reshape(B, L, num_heads * d)


def attention_by_chunks(qkv: Tensor, num_heads: int) -> Tensor:
    """`attention` on a CPU: fp32 products, and weights of `QUERY_CHUNK` queries at a time.

    For the second product exp(x - max x) = p / max p is rounded to the dtype of `qkv`, as on a
    GPU: what is measured here is what runs there.

    softmax_one(x) = p / (1 + max p) with p = softmax(x), because max p = 1 / S: so the library's
    softmax is used, and the row factor divides the d-wide result, not the l-wide weights.
    """
    B, L, three_c = qkv.shape
    d = three_c // (3 * num_heads)
    heads = qkv.float().reshape(B, L, num_heads, 3, d).permute(3, 0, 2, 1, 4)
    q, kt, v = heads[0] * d**-0.5, heads[1].transpose(-1, -2), heads[2]
    out = torch.empty(B, L, num_heads, d).transpose(1, 2)
    for at in range(0, L, QUERY_CHUNK):
        p = torch.softmax(q[:, :, at : at + QUERY_CHUNK] @ kt, dim=-1)
        top = p.amax(-1, keepdim=True)
        if qkv.dtype != torch.float32:
            p = (p / top).to(qkv.dtype).float() * top
        out[:, :, at : at + QUERY_CHUNK] = (p @ v) / (1 + top)
    return out.transpose(1, 2).reshape(B, L, num_heads * d).to(qkv.dtype)


@torch.library.custom_op("tadiff::attention", mutates_args=(), device_types="cpu")
def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Attention of every head over all positions, weighted by `softmax_one` (see the module).

    On a GPU one kernel that never holds the scores in memory (Dao et al. 2022, algorithm 1): it
    reads `qkv` as it lies and needs no memory but the result. A row has the same bits on every
    run.

    Args:
        qkv: (b, l, 3c) contiguous; fp32, fp16 or bf16. Channels head by head, and inside a head
            its queries, keys and values, each d = c / num_heads <= 128 wide: the layout of the
            published `qkv` projection. b is at most 65,535, and l 3c below 2^31.
        num_heads: 1 to 65,535.

    Returns:
        (b, l, c) contiguous, dtype of `qkv`, channels head by head.

    Raises:
        ValueError: a dtype, shape or stride is not as above.
    """
    _check(qkv, num_heads)
    return attention_by_chunks(qkv, num_heads)


@attention.register_kernel("cuda")
def on_gpu(qkv: Tensor, num_heads: int) -> Tensor:
    """`attention` by the kernel."""
    _check(qkv, num_heads)
    from tadiff_kernels.attention_triton import launch

    out = _empty_result(qkv)
    with torch.cuda.device(qkv.device):
        launch(qkv, num_heads, out)
    return out


@attention.register_fake
def _(qkv: Tensor, num_heads: int) -> Tensor:
    return _empty_result(qkv)


def _empty_result(qkv: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)


def _check(qkv: Tensor, num_heads: int) -> None:
    if qkv.dtype not in DTYPES:
        raise ValueError(f"qkv must be fp32, fp16 or bf16, got {qkv.dtype}")
    if qkv.ndim != 3 or qkv.shape[1] < 1:
        raise ValueError(
            f"qkv must have shape (b, l, 3c) with l of at least 1, got {tuple(qkv.shape)}"
        )
    channels = qkv.shape[2]
    if num_heads < 1 or channels % (3 * num_heads) or channels == 0:
        raise ValueError(
            f"qkv must have queries, keys and values of {num_heads} heads, 3 x {num_heads} x d "
            f"channels, got {channels}"
        )
    if channels // (3 * num_heads) > WIDEST:
        raise ValueError(
            f"a head may be {WIDEST} channels wide, got {channels // (3 * num_heads)} "
            f"({channels} channels of qkv, {num_heads} heads)"
        )
    if max(len(qkv), num_heads) > MOST_PROGRAMS:
        raise ValueError(
            f"b and num_heads may be at most {MOST_PROGRAMS}, got {len(qkv)} and {num_heads}"
        )
    if qkv.shape[1] * channels > MOST_ELEMENTS:
        raise ValueError(
            f"a sample of qkv may have at most {MOST_ELEMENTS} elements, "
            f"got {qkv.shape[1]} x {channels}"
        )
    if not qkv.is_contiguous():
        raise ValueError(
            f"qkv must be contiguous, got strides {qkv.stride()} for shape {tuple(qkv.shape)}"
        )
