"""Registers every operator of `torch.ops.tadiff`: import it before a program that calls them.

Needs PyTorch alone. On a CPU an operator is its plain PyTorch reference; its Triton kernels are
imported when it first runs on a GPU.
"""

from tadiff_kernels import (
    attention,
    conditioning,
    ensemble_step,
    group_norm_silu,
    solver_step,
)

__all__ = ["attention", "conditioning", "ensemble_step", "group_norm_silu", "solver_step"]
