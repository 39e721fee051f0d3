"""What nothing can be faster than: bytes and arithmetic at the rates that were measured."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import row

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

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
