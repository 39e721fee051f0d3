"""GPU kernels of `group_norm_silu`: statistics of parts, then merge, normalise and write.

With one program per group, batch 1 would use 32 of 132 multiprocessors. Here a sample is cut into
parts (a range of positions times BLOCK_C channels), and two launches share the cut:

1. `_statistics`: mean and sum of squared deviations of every channel in every part. A channel's
   shift moves its mean and nothing else, so it is not needed yet; neither are the groups.
2. `_normalise`: every program merges the statistics of the groups that its channels belong to,
   in one fixed order, and writes its part of the result.

Memory traffic is two reads and one write of the activation, where it fits in the L2 cache one read
and one write. Programs of the second launch run in reverse, so that what the first one read last,
and L2 still holds, is read first. No atomics: every run gives the same bits. They do depend on the
number of parts, and so on the batch size; not on the other samples.

Small images, whose groups fit in the registers of a program, take one launch of `_whole`: one read
and one write. At 24 x 24 in half precision a program reads 18 kB, which at the 64 bytes a cycle
that a multiprocessor gets from L2 is below 0.2 microseconds, less than a launch takes (derived,
not measured).
"""

import triton
import triton.language as tl
from torch import Tensor

# Not yet tuned on a GPU: from the registers that the compiler asks for, and the sizes of caches.
PART, PART_WARPS = 8192, 8  # elements a program holds at a time, 32 a thread
WHOLE, WHOLE_WARPS = 16384, 16  # the same of an image in one launch
CHANNELS = 16  # of a program in channels_last: 32 bytes in half precision, the L2 cache's unit
PARTIALS = 128  # of a group that every program of the second launch merges, at most
PROGRAMS = 8 * 132  # enough for a large batch: eight on each multiprocessor of an H100


def cut(b: int, c: int, p: int, group: int, channels_last: bool) -> tuple[int, int, int, int]:
    """How samples of c channels and p positions are cut: (BLOCK_P, BLOCK_C, SPLITS, SPAN).

    A part spans SPAN positions, a multiple of BLOCK_P, of BLOCK_C channels. More splits are more
    programs; but each merges group · SPLITS partial statistics, which PARTIALS bounds.

    Args:
        group: channels of a group.
    """
    block_c = CHANNELS if channels_last else 1
    block_p = min(PART // block_c, triton.next_power_of_2(p))
    chunks = triton.cdiv(p, block_p)
    wanted = triton.cdiv(PROGRAMS, b * triton.cdiv(c, block_c))
    splits = min(chunks, wanted, max(1, PARTIALS // group))
    span = triton.cdiv(chunks, splits) * block_p
    return block_p, block_c, triton.cdiv(p, span), span


def whole_width(p: int, group: int, channels_last: bool) -> int:
    """Channels that one program can hold at all p positions, whole groups; 0 where it cannot."""
    width = group * max(1, CHANNELS // group) if channels_last else group
    if channels_last and width % CHANNELS:
        return 0  # rows of such a program would not begin at multiples of 16 bytes
    held = triton.next_power_of_2(p) * triton.next_power_of_2(width)
    return width if held <= WHOLE else 0


@triton.jit
def _at(p, c, C, P, CHANNELS_LAST: tl.constexpr):
    """Offset of position p of channel c in a sample: int32, see `MOST_ELEMENTS`."""
    return p * C + c if CHANNELS_LAST else c * P + p


@triton.jit
def _load(x_ptr, skip_ptr, p, c, ok, C, C1, P, CHANNELS_LAST: tl.constexpr):
    """Positions p of channels c of the concatenation [x, skip] of one sample, 0 where not ok."""
    pointers = x_ptr + _at(p, c, C1, P, CHANNELS_LAST)
    if skip_ptr is not None:
        others = skip_ptr + _at(p, c - C1, C - C1, P, CHANNELS_LAST)
        pointers = tl.where(c < C1, pointers, others)
    return tl.load(pointers, ok, 0.0)


@triton.jit
def _merge(mean, m2, count):
    """Mean and sum of squared deviations of all rows of a tile from those of each: (1, columns).

    Chan, Golub and LeVeque 1979, the update of pairs for any number of parts at once. The mean is
    refined once: rounding that is small next to the mean may be large next to the deviations, and
    where all values are one value, they must come out as 0.
    """
    total = tl.sum(count, axis=0)[None, :]
    rough = tl.sum(count * mean, axis=0)[None, :] / total
    merged = rough + tl.sum(count * (mean - rough), axis=0)[None, :] / total
    d = mean - merged
    return merged, tl.sum(m2 + count * d * d, axis=0)[None, :]


@triton.jit
def _part(pid, C, P, SPLITS, SPAN, BLOCK_C: tl.constexpr):
    """Sample, channels (1, BLOCK_C), split and range of positions of program pid."""
    blocks = tl.cdiv(C, BLOCK_C)
    b = (pid // blocks // SPLITS).to(tl.int64)  # int64: B · C · P can pass 2³¹
    split = pid // blocks % SPLITS
    c = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return b, c, split, split * SPAN, tl.minimum(split * SPAN + SPAN, P)


@triton.jit
def _statistics(
    x_ptr,  # (B, C1, P) in fp32, fp16 or bf16
    skip_ptr,  # (B, C - C1, P) or None
    mean_ptr,  # (B, C, SPLITS) fp32, written
    m2_ptr,  # the same: sums of squared deviations
    C,
    C1,
    P,
    SPLITS,
    SPAN,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per part: statistics of each channel by itself."""
    b, c, split, start, end = _part(tl.program_id(0), C, P, SPLITS, SPAN, BLOCK_C)
    x_ptr += b * C1 * P
    if skip_ptr is not None:
        skip_ptr += b * (C - C1) * P

    # Welford 1962, in every element of the tile: E[x²] - mean² cancels when |mean| >> std.
    row = tl.arange(0, BLOCK_P)[:, None]
    mean = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first in range(start, end, BLOCK_P):
        p = first + row
        ok = (p < end) & (c < C)
        x = _load(x_ptr, skip_ptr, p, c, ok, C, C1, P, CHANNELS_LAST).to(tl.float32)
        d = tl.where(ok, x - mean, 0.0)
        mean += d * (1.0 / ((first - start) // BLOCK_P + 1).to(tl.float32))
        m2 += d * (x - mean)

    count = (end - start - row + BLOCK_P - 1) // BLOCK_P
    mean, m2 = _merge(mean, m2, count.to(tl.float32))
    at = (b * C + c) * SPLITS + split
    tl.store(mean_ptr + at, mean, c < C)
    tl.store(m2_ptr + at, m2, c < C)


@triton.jit
def _group_statistics(
    mean_ptr, m2_ptr, shift_ptr, c, C, P, GROUP, SPLITS, SPAN, BLOCK_R: tl.constexpr
):
    """Mean and variance over the group of every channel c of one sample.

    Of x + shift - shift[c]: relative to what is in memory, so that the shift does not cost the
    mean its last digits.
    """
    # Partial r of a group is of its channel r // SPLITS, from split r % SPLITS.
    r = tl.arange(0, BLOCK_R)[:, None]
    ok = (r < GROUP * SPLITS) & (c < C)
    first = c // GROUP * GROUP
    mean = tl.load(mean_ptr + first * SPLITS + r, ok, 0.0)
    m2 = tl.load(m2_ptr + first * SPLITS + r, ok, 0.0)
    if shift_ptr is not None:
        own = tl.load(shift_ptr + c, c < C, 0.0)
        mean += tl.load(shift_ptr + first + r // SPLITS, ok, 0.0) - own
    count = tl.where(r < GROUP * SPLITS, tl.minimum(SPAN, P - r % SPLITS * SPAN), 0)
    mean, m2 = _merge(mean, m2, count.to(tl.float32))
    return mean, m2 / (GROUP * P)


@triton.jit
def _normalise(
    x_ptr,  # (B, C1, P) in fp32, fp16 or bf16
    skip_ptr,  # (B, C - C1, P) or None
    shift_ptr,  # (B, C) fp32, or None
    shift_stride_b,
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    mean_ptr,  # (B, C, SPLITS) fp32
    m2_ptr,  # the same
    y_ptr,  # (B, C, P) like x, written
    C,
    C1,
    P,
    GROUP,  # channels of a group
    SPLITS,
    SPAN,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,  # at least GROUP · SPLITS
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per part, last part first."""
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    b, c, _, start, end = _part(pid, C, P, SPLITS, SPAN, BLOCK_C)
    x_ptr += b * C1 * P
    if skip_ptr is not None:
        skip_ptr += b * (C - C1) * P
    if shift_ptr is not None:
        shift_ptr += b * shift_stride_b
    # Asked for before the statistics are merged, so that the two waits are one.
    p = start + tl.arange(0, BLOCK_P)[:, None]
    ok = (p < end) & (c < C)
    x = _load(x_ptr, skip_ptr, p, c, ok, C, C1, P, CHANNELS_LAST)

    mean_ptr += b * C * SPLITS
    m2_ptr += b * C * SPLITS
    mean, variance = _group_statistics(
        mean_ptr, m2_ptr, shift_ptr, c, C, P, GROUP, SPLITS, SPAN, BLOCK_R
    )
    scale = tl.rsqrt(variance + EPS) * tl.load(weight_ptr + c, c < C, 0.0)
    bias = tl.load(bias_ptr + c, c < C, 0.0)
    y_ptr += b * C * P
    for _ in range(start, end, BLOCK_P):
        y = (x.to(tl.float32) - mean) * scale + bias
        if SILU:
            y = y * tl.sigmoid(y)
        at = y_ptr + _at(p, c, C, P, CHANNELS_LAST)
        ok = (p < end) & (c < C)
        # The next chunk is on its way while this one is written.
        p += BLOCK_P
        x = _load(x_ptr, skip_ptr, p, c, (p < end) & (c < C), C, C1, P, CHANNELS_LAST)
        tl.store(at, y.to(y_ptr.dtype.element_ty), ok)


@triton.jit
def _by_group(x, BLOCK_G: tl.constexpr):
    """(1, channels) -> (BLOCK_G, groups)."""
    return tl.trans(tl.reshape(x, [x.shape[1] // BLOCK_G, BLOCK_G]))


@triton.jit
def _by_channel(x, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr):
    """(BLOCK_G or 1, groups) -> (1, BLOCK_C), the inverse."""
    return tl.reshape(tl.trans(tl.broadcast_to(x, [BLOCK_G, BLOCK_C // BLOCK_G])), [1, BLOCK_C])


@triton.jit
def _whole(
    x_ptr,  # (B, C1, P) in fp32, fp16 or bf16
    skip_ptr,  # (B, C - C1, P) or None
    shift_ptr,  # (B, C) fp32, or None
    shift_stride_b,
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    y_ptr,  # (B, C, P) like x, written
    C,
    C1,
    P,
    GROUP,  # channels of a group
    WIDTH,  # channels of a program: whole groups
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,  # at least P
    BLOCK_G: tl.constexpr,  # GROUP, or more if there is one group: a power of two
    BLOCK_C: tl.constexpr,  # at least WIDTH
):
    """One program per WIDTH channels of a sample, which it holds in registers."""
    blocks = tl.cdiv(C, WIDTH)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * WIDTH
    c = first + tl.arange(0, BLOCK_C)[None, :]
    limit = tl.minimum(first + WIDTH, C)
    x_ptr += b * C1 * P
    if skip_ptr is not None:
        skip_ptr += b * (C - C1) * P
    p = tl.arange(0, BLOCK_P)[:, None]
    ok = (p < P) & (c < limit)
    x = _load(x_ptr, skip_ptr, p, c, ok, C, C1, P, CHANNELS_LAST).to(tl.float32)
    scale = tl.load(weight_ptr + c, c < limit, 0.0)
    bias = tl.load(bias_ptr + c, c < limit, 0.0)
    mean, m2 = _merge(x, 0.0, (p < P).to(tl.float32))

    mean = _by_group(mean, BLOCK_G)
    if shift_ptr is not None:
        # Relative to the mean shift of the group, as in `_group_statistics`.
        shift = tl.load(shift_ptr + b * shift_stride_b + c, c < limit, 0.0)
        shift = _by_group(shift, BLOCK_G)
        shift -= tl.sum(shift, axis=0)[None, :] / GROUP
        mean += shift
    count = tl.where(tl.arange(0, BLOCK_G)[:, None] < GROUP, P, 0)
    mean, m2 = _merge(mean, _by_group(m2, BLOCK_G), count.to(tl.float32))
    if shift_ptr is not None:
        mean -= shift
    mean = _by_channel(mean, BLOCK_G, BLOCK_C)
    m2 = _by_channel(m2, BLOCK_G, BLOCK_C)
    scale *= tl.rsqrt(m2 / (GROUP * P) + EPS)
    y = (x - mean) * scale + bias
    if SILU:
        y = y * tl.sigmoid(y)
    at = y_ptr + b * C * P + _at(p, c, C, P, CHANNELS_LAST)
    tl.store(at, y.to(y_ptr.dtype.element_ty), ok)


def launch(
    x: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    y: Tensor,
) -> None:
    """Fills `y`, of the memory format of `x`; arguments as of `group_norm_silu`."""
    b, c, h, w = y.shape
    p, group = h * w, c // num_groups
    channels_last = not y.is_contiguous()  # where y is both, both orders are the same memory
    row = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    inputs = (x, skip, shift, row, weight, bias)
    sizes = (c, x.shape[1], p)
    options = {"CHANNELS_LAST": channels_last, "enable_fp_fusion": True}
    result = {"EPS": eps, "SILU": silu}
    if width := whole_width(p, group, channels_last):
        _whole[(b * triton.cdiv(c, width),)](
            *(*inputs, y, *sizes, group, width),
            BLOCK_P=triton.next_power_of_2(p),
            BLOCK_G=triton.next_power_of_2(group),
            BLOCK_C=triton.next_power_of_2(width),
            num_warps=WHOLE_WARPS,
            **result,
            **options,
        )
        return
    block_p, block_c, splits, span = cut(b, c, p, group, channels_last)
    options |= {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": PART_WARPS}
    grid = (b * triton.cdiv(c, block_c) * splits,)
    mean, m2 = weight.new_empty(2, b, c, splits)
    _statistics[grid](x, skip, mean, m2, *sizes, splits, span, **options)
    _normalise[grid](
        *(*inputs, mean, m2, y, *sizes, group, splits, span),
        BLOCK_R=triton.next_power_of_2(group * splits),
        **result,
        **options,
    )
