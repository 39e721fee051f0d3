"""One row of a solver table for a whole batch in one pass, and the noise that a run starts from.

With the columns of a row named as in `tadiff_rt.plan` (t, alpha, sigma, coef_x, coef_x0,
coef_x0_prev, _prev2, _prev3, coef_noise, mask_weight), row i is

    x0_i  = (x - sigma eps) / alpha, clipped to x0_range
    x     = coef_x x + coef_x0 x0_i + coef_x0_prev x0_{i-1} + ... + coef_noise z_i
    fused = fused + mask_weight logits

Each operation is rounded to float32, in this order: the bits of `tadiff_rt.solvers.solve` on
float32 arrays, but for the sign of zeros. z is the noise of `tadiff_rt.noise`: of step 0 at the
start, of step i + 1 in row i.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tadiff_kernels.philox import normal_reference

COLUMNS = 10
_WORD = 0xFFFFFFFF
_ESTIMATES = (torch.float32, torch.float16, torch.bfloat16)


def solver_step_reference(
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
    """What the kernel computes, in plain PyTorch: the test oracle and the CPU implementation.

    Args: as of `solver_step`.
    """
    _, alpha, sigma, coef_x, coef_x0, *coef_prev, coef_noise, mask_weight = table[i]
    finite = eps.isfinite().flatten(1).all(1) & logits.isfinite().flatten(1).all(1)
    broken.copy_(torch.where(finite, broken, broken.clamp(max=i)))

    x0 = estimates[i % len(estimates)]
    x0.copy_((x - sigma * eps.float()) / alpha)
    if x0_range:
        x0.clamp_(*x0_range)
    x.mul_(coef_x)
    x += coef_x0 * x0
    for k, coef in enumerate(coef_prev[:history], start=1):
        if coef:
            x += coef * estimates[(i - k) % len(estimates)]
    if noisy:
        x += coef_noise * _normal(x, rows, seed, i + 1)
    if mask_weight:
        fused += mask_weight * logits.float()


def solver_start_reference(
    x: Tensor, guess: Tensor | None, table: Tensor, rows: Tensor, seed: Tensor
) -> None:
    """What the kernel computes, in plain PyTorch: the test oracle and the CPU implementation.

    Args: as of `solver_start`.
    """
    z = _normal(x, rows, seed, 0)
    x.copy_(z if guess is None else table[0, 1] * guess + table[0, 2] * z)


def _normal(x: Tensor, rows: Tensor, seed: Tensor, step: int) -> Tensor:
    low, high = (word & _WORD for word in seed.tolist())
    pairs = [(at & _WORD, sample & _WORD) for at, sample in rows.tolist()]
    return normal_reference(high << 32 | low, pairs, step, tuple(x.shape[1:]), x.device)


@torch.library.custom_op(
    "tadiff::solver_step", mutates_args=("x", "estimates", "fused", "broken"), device_types="cpu"
)
def solver_step(
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
    """Row i of `table` for a batch; see the module. On a GPU: one launch, nothing allocated.

    Coefficients, noise key, slices and samples are read from device buffers when the kernel runs:
    a captured CUDA graph that is replayed after they were rewritten uses the new ones.

    Args:
        x: (b, 3, h, w) float32 state, overwritten.
        estimates: (history + 1, b, 3, h, w) float32 ring: x0 of row j is written to slot
            j % (history + 1). Where a coefficient is 0 the slot is not read.
        fused: (b, 4, h, w) float32 sum of weighted logits; zeros before row 0. Neither read nor
            written where the row's weight is 0.
        broken: (b,) int32, lowered to i where eps or logits of a batch row are not all finite,
            whatever their weight; 2^31 - 1 before row 0.
        eps: (b, 3, h, w) noise estimate, float32, float16 or bfloat16, any strides.
        logits: (b, 4, h, w) mask logits, likewise.
        table: (K, 10) float32 coefficients.
        rows: (b, 2) int32 slice and sample of every batch row, of `philox.row_words`.
        seed: (2,) int32 halves of the seed, the first two of `philox.draw_words`.
        i: 0 … K - 1.
        history: how many earlier x0 any row of the table reads, 0 to 3.
        noisy: False leaves out the noise, for a table whose column is 0.
        x0_range: low and high, or empty: not clipped.

    All but eps and logits are contiguous; at most 65,535 batch rows on a GPU (the limit of a CUDA
    grid) of fewer than 2^31 elements each.

    Raises:
        ValueError: an argument has another shape, dtype or device, is not contiguous, or is out
            of range.
    """
    arguments = (x, estimates, fused, broken, eps, logits, table, rows, seed)
    _check_step(*arguments, i, history, noisy, x0_range)
    solver_step_reference(*arguments, i, history, noisy, x0_range)


@solver_step.register_kernel("cuda")
def step_on_gpu(*arguments: Any) -> None:
    """`solver_step` by the kernel."""
    from tadiff_kernels.solver_step_triton import launch

    _check_step(*arguments)
    with torch.cuda.device(arguments[0].device):
        launch(*arguments)


@torch.library.custom_op("tadiff::solver_start", mutates_args=("x",), device_types="cpu")
def solver_start(
    x: Tensor, guess: Tensor | None, table: Tensor, rows: Tensor, seed: Tensor
) -> None:
    """x of row 0: noise, or alpha guess + sigma noise with alpha and sigma of the table's row 0.

    Args:
        x: (b, 3, h, w) float32, overwritten.
        guess: like x; a first guess at the image, for an informed start. None starts from noise.
        table, rows, seed: as of `solver_step`.

    Raises:
        ValueError: as of `solver_step`.
    """
    _check_start(x, guess, table, rows, seed)
    solver_start_reference(x, guess, table, rows, seed)


@solver_start.register_kernel("cuda")
def start_on_gpu(*arguments: Any) -> None:
    """`solver_start` by the kernel."""
    from tadiff_kernels.solver_step_triton import launch_start

    _check_start(*arguments)
    with torch.cuda.device(arguments[0].device):
        launch_start(*arguments)


@solver_step.register_fake
def _(*_: Any) -> None:
    """Nothing is returned."""


@solver_start.register_fake
def _(*_: Any) -> None:
    """Nothing is returned."""


def _check_step(
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
    b, _, h, w = _check_start(x, None, table, rows, seed)
    if not 0 <= history <= 3:
        raise ValueError(f"history must be 0 to 3, got {history}")
    if not 0 <= i < len(table):
        raise ValueError(f"i must be a row of the table, 0 to {len(table) - 1}, got {i}")
    if x0_range and not (len(x0_range) == 2 and x0_range[0] <= x0_range[1]):
        raise ValueError(f"x0_range must be low and high, or empty, got {list(x0_range)}")
    _check("estimates", estimates, (history + 1, *x.shape), x.device)
    _check("fused", fused, (b, 4, h, w), x.device)
    _check("broken", broken, (b,), x.device, torch.int32)
    for name, tensor, channels in (("eps", eps, 3), ("logits", logits, 4)):
        shape = (b, channels, h, w)
        if tensor.dtype not in _ESTIMATES or tensor.shape != shape or tensor.device != x.device:
            raise ValueError(_expected(name, tensor, f"of floats, shape {shape} on {x.device}"))


def _check_start(
    x: Tensor, guess: Tensor | None, table: Tensor, rows: Tensor, seed: Tensor
) -> torch.Size:
    """The shape of x."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(_expected("x", x, "of shape (b, 3, h, w)"))
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(_expected("table", table, f"of shape (K, {COLUMNS})"))
    _check("x", x, tuple(x.shape), x.device)
    if guess is not None:
        _check("guess", guess, tuple(x.shape), x.device)
    _check("table", table, (len(table), COLUMNS), x.device)
    _check("rows", rows, (len(x), 2), x.device, torch.int32)
    _check("seed", seed, (2,), x.device, torch.int32)
    return x.shape


def _check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    if (tensor.dtype, tensor.shape, tensor.device) != (dtype, shape, device):
        raise ValueError(_expected(name, tensor, f"{dtype} of shape {shape} on {device}"))
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {tensor.stride()} for shape {shape}"
        )


def _expected(name: str, tensor: Tensor, what: str) -> str:
    found = f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
    return f"{name} must be {what}, got {found}"
