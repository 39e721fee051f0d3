"""What nothing can be faster than: bytes and arithmetic at the rates that were measured."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import row, run_in_turns

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

PRODUCT_SIZE, COPY_BYTES = 2048, 256 << 20
"""Of the rates of a CPU."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a piece of work cannot do without."""

    bytes: float
    """Every input read once, every output written once."""
    flops: float = 0.0
    """2 for a multiplication and the addition after it."""
    dtype: str = "fp32"
    """Of the arithmetic."""

    def times(self, count: float) -> "Work":
        """The same so many times."""
        return Work(count * self.bytes, count * self.flops, self.dtype)


@dataclass(frozen=True)
class Roofline:
    """Rates that this machine reached, in this session, on work that does nothing else."""

    bytes_per_s: float
    flops_per_s: dict[str, float]
    """By dtype."""

    @classmethod
    def of(cls, rows: Path) -> "Roofline":
        """From the last rows of `benchmarks.gpu_roofline` in a file of rows.

        Raises:
            SystemExit: there are none.
        """
        found: dict[str, Row] = {}
        for line in rows.read_text().splitlines() if rows.exists() else []:
            entry = json.loads(line)
            if entry["case"] == "roofline" and "failed" not in entry:
                found[entry["contestant"]] = entry
        wanted = ["copy", *(f"product {dtype}" for dtype in DTYPES)]
        if not set(wanted) <= found.keys():
            raise SystemExit(
                f"{rows} has no roofline: run python -m benchmarks.gpu_roofline first"
            )
        rates = {dtype: found[f"product {dtype}"]["flops_per_s"] for dtype in DTYPES}
        return cls(found["copy"]["bytes_per_s"], rates)

    @classmethod
    def of_this_cpu(cls, threads: int) -> "Roofline":
        """Measured now, by PyTorch: a large copy, and large matrix products in fp32 and bf16."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            a, b = torch.rand(2, PRODUCT_SIZE, PRODUCT_SIZE)
            a_half, b_half = a.bfloat16(), b.bfloat16()
            image, copied = torch.rand(2, COPY_BYTES // 4)
            runs = {
                "fp32": lambda: a @ b,
                "bf16": lambda: a_half @ b_half,
                "copy": lambda: copied.copy_(image),
            }
            seconds = {k: statistics.median(v) for k, v in run_in_turns(runs, 7).items()}
        finally:
            torch.set_num_threads(before)
        rates = {dtype: 2 * PRODUCT_SIZE**3 / seconds[dtype] for dtype in ("fp32", "bf16")}
        return cls(2 * COPY_BYTES / seconds["copy"], rates)

    def as_row(self, case: str) -> Row:
        """The rates themselves, for the table that shows what a share is a share of."""
        return {
            "case": case,
            "contestant": "this machine",
            "bytes_per_s": float(f"{self.bytes_per_s:.4g}"),
            "flops_per_s": {k: float(f"{v:.4g}") for k, v in self.flops_per_s.items()},
            "no_floor": "it is the floor",
            "quality": "nothing is computed",
        }

    def floor(self, works: Iterable[Work]) -> tuple[float, str]:
        """Milliseconds of `works` one after the other, and what takes most of them."""
        share = {"bandwidth": 0.0, "flops": 0.0}
        for work in works:
            moving = work.bytes / self.bytes_per_s
            computing = work.flops / self.flops_per_s[work.dtype]
            share["bandwidth" if moving > computing else "flops"] += 1e3 * max(moving, computing)
        return sum(share.values()), max(share, key=lambda kind: share[kind])

    def columns(self, ms: float, works: Iterable[Work]) -> Row:
        """Of a row: the floor, its kind, and the share of it that was reached."""
        floor, kind = self.floor(works)
        return {
            "floor_ms": float(f"{floor:.4g}"),
            "floor_kind": kind,
            "roofline_fraction": float(f"{floor / ms:.4g}"),
        }


def timed_row(
    case: str,
    contestant: str,
    seconds: list[float],
    works: Iterable[Work],
    roofline: Roofline,
    **columns: object,
) -> Row:
    """A row with its floor."""
    entry = row(case, contestant, seconds, **columns)
    return {**entry, **roofline.columns(entry["ms"], works)}
