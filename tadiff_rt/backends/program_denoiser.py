"""The denoiser as an exported PyTorch program, for tensors; compiled where they are on a GPU."""

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tadiff_kernels.operators  # noqa: F401  registers torch.ops.tadiff
from tadiff_rt.backends import no_memory
from tadiff_rt.backends.ort import load_conditioner
from tadiff_rt.backends.tensors import BUCKETS, of_memory
from tadiff_rt.bundle import Bundle
from tadiff_rt.canary import canary_request
from tadiff_rt.errors import EngineError, NumericsError, TadiffError
from tadiff_rt.manifest import Artefact
from tadiff_rt.pt2_scan import scan_program

CONDITIONER_ALLOWED = 1e-4
"""Of the largest shift. Two fp32 conditioners differ by 1e-6; one of other weights by more than
this."""
WARM_UP = 3
"""Calls before a bucket is ready: the first compiles, the next choose algorithms."""

T = TypeVar("T")


class ProgramDenoiser:
    """The denoiser of a bundle for tensors on `device`; see `DeviceDenoiser`.

    cuDNN keeps the algorithms that it chose in `prepare` for the thread that chose them: calls
    and captures that must agree in every bit are made in one thread, that of `prepare`.
    """

    def __init__(
        self, bundle: Bundle, artefact: Artefact, device: torch.device, description: str
    ) -> None:
        manifest = bundle.manifest
        self.device, self.description = device, description
        self.capturable = device.type == "cuda"
        self.buckets: tuple[int, ...] = (artefact.batch or 1,)
        if artefact.dynamic_batch:
            self.buckets = BUCKETS
        self._dynamic = artefact.dynamic_batch
        self._size, self._width = manifest.card.data.size, manifest.conditioning_width
        if self.capturable:
            fix_arithmetic()
        self.on_cpu = load_conditioner(bundle)
        self._module = load_module(bundle, artefact, device)
        program = manifest.conditioner_program
        self._conditioner = load_module(bundle, program, device) if program else None
        self._rows = 0
        self._run: Any = None
        if self._conditioner is not None:
            self._check_conditioner(manifest.card.treatments)

    def _check_conditioner(self, treatments: Mapping[str, int]) -> None:
        """The program of the conditioner gives what the graph gives, which is certified.

        Raises:
            NumericsError: TD6011, it does not.
        """
        t, days, asked = canary_request(tuple(map(float, treatments.values())))
        times = np.array([1.0, t])
        expected = self.on_cpu.condition(times, days, asked)
        got = self.condition(times, days, asked).cpu().numpy()
        error = float("inf")
        if got.shape == expected.shape:
            error = float(np.abs(got - expected).max() / (np.abs(expected).max() or 1.0))
        if not error <= CONDITIONER_ALLOWED:
            raise NumericsError(
                "TD6011",
                f"the conditioner program on {self.description} is {error:.1e} from the "
                f"bundle's ONNX conditioner; {CONDITIONER_ALLOWED:.0e} is allowed",
                fix="use another backend, or export the checkpoint again",
            )

    def twin(self) -> "ProgramDenoiser":
        """The same programs in the same memory, prepared for nothing."""
        twin = copy.copy(self)
        twin._rows, twin._run = 0, None
        return twin

    def prepare(self, rows: int) -> None:
        """See `DeviceDenoiser.prepare`; on a GPU compiles, which takes a minute the first time.

        Raises:
            ValueError: the program is for another number of rows.
            EngineError: TD5013, it cannot be compiled here.
            ResourceError: TD7001.
        """
        if rows < 1 or not (self._dynamic or rows in self.buckets):
            raise ValueError(f"rows must be one of {self.buckets}, got {rows}")
        if rows == self._rows:
            return
        self._release()
        try:
            self._run = self._compiled(rows) if self.capturable else self._module
            self._rows = rows
            return
        except Exception as e:  # of CUDA, of the compiler, of the tools that it calls
            error = _failed("compile the program", rows, e, fix="choose another --backend")
        self._release()  # out here: `e` holds what this must free
        raise error

    def _compiled(self, rows: int) -> Any:
        # A code object of its own: Dynamo keeps what it compiled by code object, at most eight
        # forms of each, and there are more buckets.
        module = torch.fx.GraphModule(self._module, self._module.graph)
        run = torch.compile(module, dynamic=False, fullgraph=True)
        given = [torch.zeros(shape, device=self.device) for shape in self._shapes(rows)]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's internals, and that TF32 is off
            for _ in range(WARM_UP):
                run(*given)
        torch.cuda.synchronize(self.device)  # what fails later fails here
        return run

    def _release(self) -> None:
        self._rows, self._run = 0, None
        if self.capturable:
            torch.cuda.empty_cache()  # for allocators other than torch's, and to measure by

    def _shapes(self, rows: int) -> list[tuple[int, ...]]:
        size = self._size
        return [(rows, 9, size, size), (rows, 3, size, size), (1, self._width)]

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> Tensor:
        """See `DeviceDenoiser.condition`; by the bundle's program, or else by onnxruntime."""
        conditioner = self._conditioner
        if conditioner is None:
            return torch.from_numpy(self.on_cpu.condition(t, days, treatments)).to(self.device)
        given = (
            torch.tensor(values, dtype=torch.float32, device=self.device)
            for values in (t, [days], [treatments])
        )

        def run() -> Tensor:
            with torch.no_grad():
                shifts: Tensor = conditioner(*given)
            return shifts

        return guarded(len(t), run)

    def __call__(self, sources: Tensor, x: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """See `DeviceDenoiser.__call__`.

        Raises:
            ValueError: these are other shapes than those prepared for.
            ResourceError: TD7001.
        """
        # A view of a row that is stored with padding would be compiled for once more.
        given = (sources, x, shifts.reshape(-1)[None])
        names = ("sources", "x", "shifts")
        for name, tensor, shape in zip(names, given, self._shapes(self._rows), strict=True):
            if tensor.shape != shape:  # it would be compiled for, within a run
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")

        def run() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                eps, logits = self._run(*given)
            return eps, logits

        return guarded(self._rows, run)


def load_module(bundle: Bundle, artefact: Artefact, device: torch.device) -> Any:
    """A program of the bundle as a module.

    Raises:
        ModelFileError: it may hold code, or is none; see `scan_program`.
        EngineError: TD5013, this torch cannot load it.
        ResourceError: TD7001.
    """
    program = scan_program(bundle.read(artefact), artefact.file)
    try:
        loaded: Any = torch.export.load(io.BytesIO(program.data))
        return loaded.module().to(device)
    except Exception as e:  # torch's readers share no base class
        fix = "use the torch that exported it or a newer one, or export it again"
        what, rows = f"load {artefact.file}", artefact.batch or 1
        error = _failed(what, rows, e, where=str(bundle.path), fix=fix)
    raise error


def fix_arithmetic() -> None:
    """What every convolution and product of this process is: as certified, and the same in all.

    cuDNN's own measurements (`benchmark`) may choose another algorithm in the next process, so
    that an interrupted forecast would go on with other bits.
    """
    # Neither TF32 nor sums in half precision are covered by a certificate.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


def guarded(
    rows: int, run: Callable[[], T], mine: tuple[type[Exception], ...] = (TadiffError,)
) -> T:
    """What `run` gives; where it fails, an error that keeps nothing of it alive.

    Args:
        mine: errors of this project, which are passed on.

    Raises:
        EngineError: TD5013, the program cannot be run.
        ResourceError: TD7001, a batch of `rows` does not fit.
    """
    try:
        return run()
    except mine:
        raise
    except Exception as e:  # of PyTorch, CUDA, a compiler: they share no base class
        error = _failed("run the program", rows, e, fix="choose another --backend")
    raise error  # out here: with `e` behind it, it would keep every buffer of the call


def _failed(what: str, rows: int, error: Exception, **place: str) -> TadiffError:
    if of_memory(error):
        return no_memory("torch", rows, error)
    said = f"torch {torch.__version__} cannot {what}: {str(error)[:300]}"
    return EngineError("TD5013", said, **place)
