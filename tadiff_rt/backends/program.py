"""An exported PyTorch program: compiled and captured as a CUDA graph on a GPU, eager on a CPU."""

import io
import platform
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_rt.backends import no_memory
from tadiff_rt.backends.ort import load_conditioner
from tadiff_rt.bundle import Bundle
from tadiff_rt.errors import EngineError
from tadiff_rt.manifest import Artefact
from tadiff_rt.pt2_scan import scan_program

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
WARM_UP = 3
"""Calls before a graph is captured: the first compiles, the next choose algorithms."""


def unavailable(name: str) -> str:
    """Why this backend cannot run here: it can, wherever PyTorch is installed."""
    return ""


class ProgramBackend:
    """The denoiser of a bundle as a PyTorch module on `device`."""

    name = "torch"

    def __init__(self, bundle: Bundle, artefact: Artefact, threads: int, device: str) -> None:
        program = scan_program(bundle.read(artefact), artefact.file)
        self.batch = artefact.batch or 1
        self._size = bundle.manifest.card.data.size
        self._device = torch.device(device)
        self._conditioner = load_conditioner(bundle)
        where = torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}"
        self.runtime = f"torch {torch.__version__}, {where}, {artefact.precision}"
        # Other threads and, on a GPU, other buckets give other bits.
        self.runtime += f", {threads} threads" if device == "cpu" else f", batch {self.batch}"
        self.description = self.runtime
        try:
            loaded: Any = torch.export.load(io.BytesIO(program.data))
            module = loaded.module()
        except Exception as e:  # torch's readers share no base class
            raise EngineError(
                "TD5013",
                f"torch {torch.__version__} cannot load {artefact.file}: {str(e)[:300]}",
                where=str(bundle.path),
                fix="use the torch that exported it or a newer one, or export it again",
            ) from None
        self._module = module.to(self._device)
        # A captured graph has one set of buffers, and the number of threads is the process's own:
        # calls from several threads take turns.
        self._turn = threading.Lock()
        self._threads = threads
        if device == "cuda":
            # No certificate covers TF32.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._run = self._ready()

    def _ready(self) -> Any:
        """The function that runs a bucket.

        Raises:
            EngineError: TD5013, the program cannot be compiled here.
            ResourceError: TD7001.
        """
        if self._device.type == "cpu":
            return self._eager
        try:
            return self._captured()
        except OUT_OF_MEMORY as e:
            error = no_memory("torch", self.batch, e)
        except RuntimeError as e:  # of the compiler, of CUDA
            raise EngineError(
                "TD5013",
                f"torch {torch.__version__} cannot compile the program: {str(e)[:300]}",
                fix="choose another --backend",
            ) from None
        raise error

    def _eager(
        self, feed: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with self._turn, torch.inference_mode():
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
            try:
                eps, logits = self._module(*(torch.from_numpy(a).to(self._device) for a in feed))
                return eps.cpu().numpy(), logits.cpu().numpy()
            finally:
                torch.set_num_threads(before)

    def _captured(self) -> Any:
        """A function that replays the compiled program on static buffers of this bucket."""
        compiled = torch.compile(self._module, dynamic=False)
        b, size = self.batch, self._size
        shapes = [(b, 9, size, size), (b, 3, size, size), (1, self._conditioner.width)]
        held = [torch.zeros(shape, device=self._device) for shape in shapes]
        with torch.inference_mode():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    compiled(*held)  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                eps, logits = compiled(*held)  # type: ignore[no-untyped-call]

        def replay(
            feed: Sequence[NDArray[np.float32]],
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            with self._turn, torch.inference_mode():
                for buffer, array in zip(held, feed, strict=True):
                    buffer.copy_(torch.from_numpy(array))
                graph.replay()
                return eps.cpu().numpy(), logits.cpu().numpy()

        return replay

    def halve(self) -> bool:
        """See `Backend.halve`."""
        if self.batch == 1:
            return False
        self.batch //= 2
        if self._device.type == "cuda":
            self._run = self._eager  # frees the graph's memory before the next is captured
            torch.cuda.empty_cache()
            self._run = self._ready()
        return True

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """See `Backend.condition`."""
        return self._conditioner.condition(t, days, treatments)

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.denoise`."""
        try:
            eps, logits = self._run([sources, x, shifts])
            return eps, logits
        except OUT_OF_MEMORY as e:
            error = no_memory("torch", self.batch, e)
        except RuntimeError as e:
            if "not enough memory" not in str(e):  # how the CPU allocator says it
                raise
            error = no_memory("torch", self.batch, e)
        raise error


def load(bundle: Bundle, artefact: Artefact, threads: int) -> ProgramBackend:
    """A backend on the GPU where there is one, else on `threads` CPU threads."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ProgramBackend(bundle, artefact, threads, device)
