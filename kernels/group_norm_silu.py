"""y = silu(group_norm([x, skip] + shift)): what surrounds the convolutions of a TaDiff block.

Plain PyTorch runs four operators (concatenation, addition, norm, activation), each of which reads
and writes the whole activation. On a GPU this is two launches, and neither concatenation nor sum
is ever in memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_ELEMENTS = 2**30  # of a sample: offsets in it, and in the last block beyond it, are int32
WIDEST_GROUP = 2**16  # its statistics beside 16 channels are one tile: 2^20 numbers in Triton


def group_norm_silu_reference(
    x: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """What the kernels compute, in plain PyTorch: the test oracle and the CPU implementation.

    Args: as of `group_norm_silu`; float64 too, which then stays.
    """
    h = x if skip is None else torch.cat([x, skip], dim=1)
    # Contiguous: on a CPU, PyTorch's norm of a channels_last tensor loses all digits at mean 1000.
    h = h.to(torch.promote_types(x.dtype, torch.float32), memory_format=torch.contiguous_format)
    if shift is not None:
        h = h + shift[:, :, None, None]
    h = torch.group_norm(h, num_groups, weight, bias, eps)
    return (F.silu(h) if silu else h).to(x.dtype)


@torch.library.custom_op("tadiff::group_norm_silu", mutates_args=(), device_types="cpu")
def group_norm_silu(
    x: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """Group norm (Wu and He 2018) of [x, skip] + shift, then SiLU: see the module.

    All arithmetic is in fp32, the sum with shift included. On a GPU the bits depend on the batch
    size, but not on the other samples, and are the same in every run.

    Args:
        x: (b, c1, h, w) fp32, fp16 or bf16, contiguous or channels_last.
        skip: (b, c2, h, w) in the dtype and memory format of x: the other half of a decoder's
            concatenation. A group may have channels of both.
        shift: (b or 1, c1 + c2) fp32, added to every position of a channel. Rows may be apart.
        weight, bias: (c1 + c2,) fp32.
        num_groups: must divide c1 + c2, into groups of at most 65,536 channels.
        eps: added to the variance, above 0.
        silu: False leaves the activation out.

    Returns:
        (b, c1 + c2, h, w) in dtype and memory format of x. Where both orders are the same memory
        (c1 = 1, or h = w = 1), x is channels_last if its strides are those of such a tensor.

    Raises:
        ValueError: an argument has another shape, dtype, device or memory format, is empty, or
            a sample of the result has more than 2^30 elements.
    """
    _check(x, skip, shift, weight, bias, num_groups, eps)
    y = _empty_result(x, skip)
    return y.copy_(group_norm_silu_reference(x, skip, shift, weight, bias, num_groups, eps, silu))


@group_norm_silu.register_kernel("cuda")
def on_gpu(
    x: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """`group_norm_silu` by the kernels."""
    from tadiff_kernels.group_norm_silu_triton import launch

    _check(x, skip, shift, weight, bias, num_groups, eps)
    y = _empty_result(x, skip)
    with torch.cuda.device(x.device):
        launch(x, skip, shift, weight, bias, num_groups, eps, silu, y)
    return y


@group_norm_silu.register_fake
def _(
    x: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    return _empty_result(x, skip)


def _memory_format(x: Tensor) -> torch.memory_format:
    """channels_last or contiguous_format; only where x is both do its strides decide.

    In the second case they are compared with those that PyTorch gives a channels_last tensor. A
    single value has the same strides in both, and is contiguous.
    """
    _, c, h, w = x.shape
    if not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    if not x.is_contiguous():
        return torch.channels_last
    last = x.stride()[1:] == (1, w * c, c) and c * h * w > 1
    return torch.channels_last if last else torch.contiguous_format


def _empty_result(x: Tensor, skip: Tensor | None) -> Tensor:
    b, c, h, w = x.shape
    c += 0 if skip is None else skip.shape[1]
    return torch.empty(
        (b, c, h, w), dtype=x.dtype, device=x.device, memory_format=_memory_format(x)
    )


def _check(
    x: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
) -> None:
    if x.ndim != 4 or not x.numel() or x.dtype not in DTYPES:
        raise ValueError(
            "x must be a (b, c, h, w) tensor, not empty, of fp32, fp16 or bf16, "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    b, c, h, w = x.shape
    if skip is not None:
        _check_tensor("skip", skip, x, x.dtype, [(b, *skip.shape[1:2], h, w)])
        c += skip.shape[1]
    memory_format = _memory_format(x)
    for name, t in {"x": x, "skip": skip}.items():
        if t is not None and not t.is_contiguous(memory_format=memory_format):
            raise ValueError(
                f"x and skip must both be contiguous or both channels_last, got {name} of strides "
                f"{t.stride()} for shape {tuple(t.shape)}, expected {memory_format}"
            )
    if shift is not None:
        _check_tensor("shift", shift, x, torch.float32, [(1, c), (b, c)])
        if c > 1 and shift.stride(1) != 1:
            raise ValueError(f"rows of shift must be contiguous, got strides {shift.stride()}")
    for name, t in {"weight": weight, "bias": bias}.items():
        _check_tensor(name, t, x, torch.float32, [(c,)])
        if not t.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {t.stride()}")
    if num_groups < 1 or c % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide the {c} channels")
    if c // num_groups > WIDEST_GROUP:
        raise ValueError(
            f"a group may have at most {WIDEST_GROUP} channels, got {c // num_groups}"
        )
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    if c * h * w > MOST_ELEMENTS:
        raise ValueError(
            f"a sample of shape {(c, h, w)} has more than {MOST_ELEMENTS} elements, the most"
        )


def _check_tensor(
    name: str, t: Tensor, x: Tensor, dtype: torch.dtype, shapes: list[tuple[int, ...]]
) -> None:
    if t.dtype != dtype or t.device != x.device or tuple(t.shape) not in shapes or not t.numel():
        raise ValueError(
            f"{name} must be {dtype} of shape {' or '.join(map(str, shapes))} on {x.device}, "
            f"got {t.dtype} of shape {tuple(t.shape)} on {t.device}"
        )
