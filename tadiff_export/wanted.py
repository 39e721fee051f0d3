"""What a bundle shall hold, checked before any work is done."""

from dataclasses import dataclass
from pathlib import Path

from tadiff_export.tensorrt import check_builder
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import OutputError, UsageError
from tadiff_rt.manifest import ENGINES, Format

TARGETS: tuple[Format, ...] = ("onnx", "tensorrt", "tensorrt-rtx", "torch")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
ENGINE_BUCKETS = (1, 2, 4, 8)
"""Rows a call that an engine is built for, one profile each."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Artefacts of a bundle."""

    targets: tuple[Format, ...] = ("onnx",)
    precisions: tuple[Precision, ...] = ("fp32",)
    """Of every target."""
    batch: int | None = None
    """Rows a call of the denoiser; None for `default_batch`."""
    compute_capabilities: tuple[str, ...] = ()
    """Of the GPUs that a tensorrt-rtx engine is for; empty for what its builder supports."""
    workspace_bytes: int = 4 << 30
    """Scratch memory that a layer of an engine may take; 8 rows of configuration C at 192 need
    2.23 GB."""
    timing_cache: Path | None = None
    """Kept measurements of earlier engine builds on this machine."""

    def check(self) -> None:
        """Before anything is computed.

        Raises:
            UsageError: TD3062, a target or precision is unknown or missing; TD3059, a GPU is
                unknown.
            EngineError: TD5008, a target needs a package or a GPU that is not here.
            OutputError: TD8003, there is no folder for the timing cache.
        """
        for what, asked, known in (
            ("target", self.targets, TARGETS),
            ("precision", self.precisions, PRECISIONS),
        ):
            unknown = [name for name in asked if name not in known]
            if unknown or not asked:
                found = f"unknown {what} {unknown[0]!r}" if unknown else f"no {what} given"
                raise UsageError("TD3062", f"{found}; choose from {', '.join(known)}")
        for target in self.targets:
            if target in ENGINES:
                check_builder(target, self.compute_capabilities or None)
        if self.timing_cache is not None and not self.timing_cache.absolute().parent.is_dir():
            where = str(self.timing_cache)
            raise OutputError("TD8003", "its folder does not exist", where=where)


def default_batch(size: int) -> int:
    """Rows a call on a CPU, from `python -m benchmarks.network_cpu` on two cores.

    Small images share what a call costs, and five are the samples of a forecast unless it is told
    otherwise, so that no batch of it is left half full. Of large images a batch gains a few per
    cent, which is not worth its memory.
    """
    return 5 if size < 128 else 1
