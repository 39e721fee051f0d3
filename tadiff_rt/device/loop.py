"""The run of a bucket on a device: all steps and the statistics, enqueued or replayed.

On a GPU a bucket is one CUDA graph. What it computes with lies in buffers that stay where they
are, and a run is: fill the buffers, replay, fetch. Nothing in between waits for the device.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from tadiff_kernels.ensemble_step import ensemble_step
from tadiff_kernels.solver_step import solver_start, solver_step
from tadiff_rt.batches import LAST_SOURCE
from tadiff_rt.device.denoiser import DeviceDenoiser
from tadiff_rt.device.form import RESULTS, Form, Inputs, Memory
from tadiff_rt.errors import EngineError

UNBROKEN = 2**31 - 1
"""In `broken`: every step of the row was finite."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""From a function that enqueues work to one that enqueues the same work again."""


class DeviceLoop:
    """Buffers and graph of one bucket size at a time; serves requests one after the other.

    Work is enqueued on the current stream of `device`; whoever else uses the buffers goes through
    `here` and `held`.
    """

    def __init__(
        self,
        denoiser: DeviceDenoiser,
        capture: Capture | None = None,
        check: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            check: called with the number of rows that the denoiser was prepared for; raises where
                it does not compute the bundle.
            capture: None for a CUDA graph on a GPU, if the denoiser allows, else none at all.
        """
        self.denoiser = denoiser
        self.device = denoiser.device
        self._given, self._check = capture, check
        self.most_rows = denoiser.buckets[-1]
        """The largest bucket that memory has not run out for so far."""
        self.form: Form | None = None
        self.memory: Memory | None = None
        self.buffers: dict[str, Tensor] = {}
        self._turn, self._owner = threading.Lock(), 0
        # One for all warm-ups and captures of this loop: libraries keep a workspace a stream, and
        # two graphs must not share theirs.
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._replay: Callable[[], None] | None = None

    @property
    def mode(self) -> str:
        """How a bucket runs."""
        return "eager" if self._capture is None else "graph"

    @property
    def _capture(self) -> Capture | None:
        # Not settled at the start: some denoisers know when they are prepared.
        if self._given is None and self.device.type == "cuda" and self.denoiser.capturable:
            return self._cuda_graph
        return self._given

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one request at a time, from its first bucket to its last; other threads wait.

        Raises:
            RuntimeError: a request of this thread is not finished, and would never be.
        """
        me = threading.get_ident()
        if self._owner == me:
            raise RuntimeError("finish the forecast that runs on this backend, then begin another")
        with self._turn:
            self._owner = me
            try:
                yield
            finally:
                self._owner = 0

    def here(self) -> AbstractContextManager[object]:
        """Makes the device of the loop the current one, which kernels are launched on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @torch.no_grad()
    def prepare(self, form: Form) -> Memory:
        """Gets ready for buckets of `form`: buffers, and one call of the denoiser that measures.

        Raises:
            ResourceError, MemoryError, RuntimeError: memory ran out, among others.
        """
        if form == self.form and self.memory is not None:
            return self.memory
        self.release()
        free = self.free_bytes()
        with self.here():
            self.denoiser.prepare(form.rows)
            if self._check is not None:
                self._check(form.rows)
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
            gc.collect()  # a graph whose capture failed, behind the traceback of its error
            torch.cuda.empty_cache()

    def free_bytes(self) -> int | None:
        """Free memory of a GPU, with nothing of this process left to finish; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        return torch.cuda.mem_get_info(self.device)[0]

    @torch.no_grad()
    def run(self, inputs: Inputs) -> None:
        """Enqueues one bucket: as a replay where the loop is captured.

        The first bucket of a form is captured, checked and computed at once; no slot may hold
        the statistics of an earlier bucket then.

        Raises:
            EngineError: a replay does not compute what the loop computes (TD5022).
            ResourceError, MemoryError, RuntimeError: memory ran out, among others.
        """
        with self.here():
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
        self._run_aside()
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

    def _run_aside(self) -> None:
        """Runs the loop on the stream of captures, as work must once before it is captured.

        Kernels are compiled and algorithms chosen in this run.
        """
        if self._side is None:
            self._enqueue()
            return
        current = torch.cuda.current_stream(self.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            self._enqueue()
        current.wait_stream(self._side)

    def _cuda_graph(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of what `enqueue` enqueues, which has run before; see `Capture`.

        Raises:
            torch.OutOfMemoryError: there is no memory for it.
        """
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        collects = gc.isenabled()
        gc.disable()  # to free another graph would end the capture
        try:
            # Other threads may go on allocating: what they do is no part of it.
            with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
                enqueue()
        finally:
            if collects:
                gc.enable()
        return graph.replay

    def _spoil(self) -> None:
        for name in RESULTS:
            buffer = self.buffers[name]
            buffer.fill_(float("nan") if buffer.is_floating_point() else -1)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))
