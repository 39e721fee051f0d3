"""How GPU benchmarks time, and where their rows go.

A run on a machine without a GPU (DEVICE=cpu QUICK=1) shows that the scripts work; its rows say so
and no page takes them.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.floor import Roofline, Row
from benchmarks.harness import append, run_in_turns
from tadiff_rt.backends.program_denoiser import fix_arithmetic

REPEATS = 50
WARM_UP = 3
ROWS = "gpu"
"""Name of the file of rows, in the output folder and in results/."""

Run = Callable[[], object]


class Replay:
    """A CUDA graph of one call, and the call, whose buffers the graph reads and writes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with _Peak() as peak, torch.cuda.graph(self.graph):
            self.result = run()
        self.peak_bytes = peak.bytes

    def __call__(self) -> None:
        self.graph.replay()


class _Peak:
    """Bytes that tensors take inside the block beside those before it."""

    def __enter__(self) -> "_Peak":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.bytes = -torch.cuda.memory_allocated()
        return self

    def __exit__(self, *raised: object) -> None:
        self.bytes += torch.cuda.max_memory_allocated()


@dataclass(frozen=True)
class Bench:
    """The device of one benchmark, its sizes, and its rows."""

    out: Path
    device: torch.device
    quick: bool

    @classmethod
    def start(cls, out: str) -> "Bench":
        """As the environment says: DEVICE, QUICK. Arithmetic is that of the runtime."""
        fix_arithmetic()
        device = torch.device(os.environ.get("DEVICE", "cuda"))
        return cls(Path(out), device, os.environ.get("QUICK") == "1")

    @property
    def on_gpu(self) -> bool:
        """Whether this is more than a dry run."""
        return self.device.type == "cuda"

    @property
    def rows(self) -> Path:
        """The file of rows."""
        return self.out / f"{ROWS}.jsonl"

    def require_seconds(self, needed: float) -> None:
        """Raises TimeoutError where the session ends sooner (DEADLINE, in seconds since 1970)."""
        left = float(os.environ.get("DEADLINE", "inf")) - time.time()
        if left < needed and self.on_gpu:
            raise TimeoutError(f"{left:.0f} s left, {needed:.0f} s needed")

    def roofline(self) -> Roofline:
        """Of this session."""
        return Roofline.of(self.rows)

    def append(self, rows: list[Row]) -> bool:
        """Writes rows; whether none of them is a failure."""
        session = {"session": os.environ.get("SESSION", ""), "device": self.device.type}
        if self.on_gpu:
            session["gpu"] = torch.cuda.get_device_name()
        append(ROWS, [{**entry, **session} for entry in rows], self.out)
        return not any("failed" in entry for entry in rows)

    def compiled(self, module: nn.Module | Callable[..., Any]) -> Callable[..., Any]:
        """torch.compile for fixed shapes; in a dry run it is traced and not compiled."""
        backend = "inductor" if self.on_gpu else "eager"
        return torch.compile(module, dynamic=False, backend=backend)

    def graphed(self, run: Run) -> Run:
        """`run` replayed from a CUDA graph, so that no launch by Python is timed."""
        return Replay(run) if self.on_gpu else run

    def seconds(self, runs: dict[str, Run], *, cold: bool) -> dict[str, list[float]]:
        """Seconds of each run by CUDA events, A B C A B C.

        Args:
            cold: the L2 cache is overwritten before each run, and the launch is hidden behind
                that. Otherwise the device is idle before each run, and launches count.
        """
        if not self.on_gpu:
            return run_in_turns(runs, 3)
        flush = torch.empty(2 * _l2_bytes(), dtype=torch.uint8, device=self.device)
        for run in runs.values():
            run()
        events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in runs}
        for _ in range(REPEATS):
            for name, run in runs.items():
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                if cold:
                    flush.zero_()
                else:
                    torch.cuda.synchronize()
                start.record()
                run()
                stop.record()
                events[name].append((start, stop))
        torch.cuda.synchronize()
        return {
            name: [start.elapsed_time(stop) / 1e3 for start, stop in pairs]
            for name, pairs in events.items()
        }

    def peak_mb(self, run: Run) -> float | None:
        """Memory that `run` takes beside what is there before it, in 10^6 bytes; None on a CPU.

        Of a graph: what it took when it was captured, and keeps.
        """
        if isinstance(run, Replay):
            return round(run.peak_bytes / 1e6, 1)
        if not self.on_gpu:
            return None
        with _Peak() as peak:
            run()
        return round(peak.bytes / 1e6, 1)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """Standard normal numbers on the device."""
        rng = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=rng, device=self.device).to(dtype)


def attempt(case: str, contestant: str, call: Callable[[], Any], failures: list[Row]) -> Any:
    """What `call` returns, or None and a row that says what it raised.

    A session on a lent machine is short: one broken contestant must not cost the rows of the rest.
    """
    try:
        return call()
    except Exception as e:  # compilers, drivers and checks share no base class
        said = " ".join(str(e).split())[:300]
        failures.append(
            {"case": case, "contestant": contestant, "failed": f"{type(e).__name__}: {said}"}
        )
        return None


def _l2_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size)
