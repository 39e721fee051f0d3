"""The run of a bucket on a device: all steps and the statistics, enqueued or replayed.

On a GPU a bucket is one CUDA graph. What it computes with lies in buffers that stay where they
are, and a run is: fill the buffers, replay, fetch. Nothing in between waits for the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tadiff_kernels.ensemble_step import ensemble_step
from tadiff_kernels.solver_step import solver_start, solver_step
from tadiff_rt.batches import LAST_SOURCE
from tadiff_rt.device.denoiser import DeviceDenoiser
from tadiff_rt.device.form import RESULTS, Form
from tadiff_rt.errors import EngineError

UNBROKEN = 2**31 - 1
"""In `broken`: every step of the row was finite."""

SHARE = 0.9
"""Of the free memory that is planned for. The rest is for what only a capture takes."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""From a function that enqueues work to one that enqueues the same work again."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device."""

    free: int | None
    """Before anything was taken; None on a CPU, where nothing is measured."""
    buffers: int
    """Of the loop, and of the copy of results that a new graph is compared with."""
    workspace: int
    """What the denoiser took beside them, to get ready and for one call."""

    @property
    def planned(self) -> int:
        """All of it."""
        return self.buffers + self.workspace

    @property
    def fits(self) -> bool:
        """It leaves some of the free memory."""
        return self.free is None or self.planned <= SHARE * self.free


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a bucket is computed from."""

    tensors: Mapping[str, Tensor]
    """By the name of the buffer that takes them."""
    shifts: Tensor
    """(steps, p) conditioning, on the device."""
    volume: Tensor
    """(d, 9, h, w) sources of every slice, on the device."""
    at: Tensor
    """(rows,) int64 slice of every row."""
    states: Mapping[int, tuple[Tensor, Tensor]]
    """Sums and counts that slots begin with."""


class DeviceLoop:
    """Buffers and graph of one bucket size at a time; serves requests one after the other."""

    def __init__(self, denoiser: DeviceDenoiser, capture: Capture | None = None) -> None:
        """
        Args:
            capture: None for a CUDA graph on a GPU, if the denoiser allows, else none at all.
        """
        self.denoiser = denoiser
        self.device = denoiser.device
        self._given = capture
        self.most_rows = denoiser.buckets[-1]
        """The largest bucket that memory has not run out for so far."""
        self.form: Form | None = None
        self.memory: Memory | None = None
        self.buffers: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None

    @property
    def mode(self) -> str:
        """How a bucket runs."""
        return "eager" if self._capture is None else "graph"

    @property
    def _capture(self) -> Capture | None:
        # Not settled at the start: some denoisers know when they are prepared.
        if self._given is None and self.device.type == "cuda" and self.denoiser.capturable:
            return cuda_graph
        return self._given

    @torch.inference_mode()
    def prepare(self, form: Form) -> Memory:
        """Gets ready for buckets of `form`: buffers, and one call of the denoiser that measures.

        Raises:
            ResourceError, MemoryError, RuntimeError: memory ran out, among others.
        """
        if form == self.form and self.memory is not None:
            return self.memory
        self.release()
        free = self.free_bytes()
        self.denoiser.prepare(form.rows)
        self.buffers = {
            name: torch.zeros(shape, dtype=dtype, device=self.device)
            for name, (dtype, shape) in form.buffers().items()
        }
        held = self.buffers
        self.denoiser(held["sources"], held["x"], held["shifts"][:1, : form.width])
        left, buffers = self.free_bytes(), form.bytes_of()
        workspace = 0 if free is None or left is None else max(0, free - left - buffers)
        if self._capture is not None:
            buffers += form.bytes_of(*RESULTS)
        self.form, self.memory = form, Memory(free, buffers, workspace)
        return self.memory

    def release(self) -> None:
        """Gives back the graph and the buffers."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies may still read them
        self._replay, self.form, self.memory = None, None, None
        self.buffers.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def free_bytes(self) -> int | None:
        """Free memory of a GPU, with nothing of this process left to finish; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        return torch.cuda.mem_get_info(self.device)[0]

    @torch.inference_mode()
    def run(self, inputs: Inputs) -> None:
        """Enqueues one bucket: as a replay where the loop is captured.

        The first bucket of a form is captured, checked and computed at once; no slot may hold
        the statistics of an earlier bucket then.

        Raises:
            EngineError: a replay does not compute what the loop computes (TD5022).
            ResourceError, MemoryError, RuntimeError: memory ran out, among others.
        """
        if self._capture is not None and self._replay is None:
            self._replay = self._captured(self._capture, inputs)
            return
        self._load(inputs)
        (self._replay or self._enqueue)()

    def _load(self, inputs: Inputs) -> None:
        held = self.buffers
        for name, tensor in inputs.tensors.items():
            held[name].copy_(tensor, non_blocking=True)
        held["shifts"][:, : inputs.shifts.shape[1]].copy_(inputs.shifts)
        at = inputs.at.to(self.device, non_blocking=True)
        torch.index_select(inputs.volume, 0, at, out=held["sources"])
        for slot, (sums, counts) in inputs.states.items():
            held["sums"][slot].copy_(sums, non_blocking=True)
            held["counts"][slot].copy_(counts, non_blocking=True)

    def _enqueue(self) -> None:
        """The loop itself: what a graph holds."""
        form, held = self.form, self.buffers
        assert form is not None
        x, fused, broken = held["x"], held["fused"], held["broken"]
        table, rows, seed = held["table"], held["rows"], held["seed"]
        fused.zero_()
        broken.fill_(UNBROKEN)
        guess = held.get("guess")
        if guess is not None:
            guess.copy_(held["sources"][:, LAST_SOURCE])
        if form.start != "given":
            solver_start(x, guess, table, rows, seed)
        run = (table, rows, seed)
        how = (form.history, form.noisy, list(form.x0_range or ()))
        for i in range(form.steps):
            shifts = held["shifts"][i : i + 1, : form.width]
            eps, logits = self.denoiser(held["sources"], x, shifts)
            solver_step(x, held["estimates"], fused, broken, eps, logits, *run, i, *how)
        statistics = (held["sums"], held["counts"])
        ensemble_step(*statistics, x, fused, held["inside"], held["segments"])

    def _captured(self, capture: Capture, inputs: Inputs) -> Callable[[], None]:
        """A replay of the loop that was compared with the loop, on the first bucket.

        While it is captured the buffers hold other inputs, and before the replay other results: a
        graph that does nothing, or that repeats what it saw at its capture, is found out.
        """
        held = self.buffers
        self._spoil()
        self._load(inputs)
        run_aside(self._enqueue, self.device)
        expected = {name: held[name].clone() for name in RESULTS}
        for buffer in held.values():
            buffer.fill_(1 if buffer.is_floating_point() else 0)
        replay = capture(self._enqueue)
        self._spoil()
        self._load(inputs)
        replay()
        differ = [name for name in RESULTS if not _same_bits(held[name], expected[name])]
        if differ:
            raise EngineError(
                "TD5022",
                f"a captured graph of {self.denoiser.description} does not compute what it was "
                f"captured from: {', '.join(differ)} differ",
                fix="choose another --backend, and report this",
            )
        return replay

    def _spoil(self) -> None:
        for name in RESULTS:
            buffer = self.buffers[name]
            buffer.fill_(float("nan") if buffer.is_floating_point() else -1)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def run_aside(enqueue: Callable[[], None], device: torch.device) -> None:
    """Runs `enqueue` on a stream of its own, as work must once before it is captured.

    Kernels are compiled and algorithms chosen in this run.
    """
    if device.type != "cuda":
        enqueue()
        return
    here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        enqueue()
    here.wait_stream(side)


def cuda_graph(enqueue: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of what `enqueue` enqueues, which has run before; see `Capture`.

    Raises:
        torch.OutOfMemoryError: there is no memory for it.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue()
    return graph.replay
