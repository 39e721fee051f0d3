"""A PyTorch program on tensors: on a CPU, and compiled with a stand-in for the compiler.

Tests marked gpu compile and capture on a GPU.
"""

import gc
import hashlib
import subprocess
import sys
import threading
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tadiff_export.fuse import fuse, fuse_conditioner
from tadiff_export.torch_package import conditioner_to_program, denoiser_to_program
from tadiff_rt.backends import find_artefact, program, program_denoiser
from tadiff_rt.backends.program import ProgramBackend, device_denoiser
from tadiff_rt.backends.program_denoiser import fix_arithmetic
from tadiff_rt.backends.tensors import BUCKETS
from tadiff_rt.bundle import Bundle, open_bundle
from tadiff_rt.case import TREATMENTS
from tadiff_rt.errors import EngineError, NumericsError, ResourceError
from tadiff_train.checkpoint import load_checkpoint

SIZE, WIDTH = 8, 6


class Tiny(nn.Module):
    """A denoiser of one convolution; its results may be half and channels_last."""

    widths = (WIDTH,)

    def __init__(self, half: bool = False) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.half_result = half
        self.weight = nn.Parameter(torch.randn(7, 12, 3, 3, generator=rng) / 10)

    def forward(self, sources, x_t, shifts):
        y = torch.conv2d(torch.cat([sources, x_t], 1), self.weight, padding=1)
        y = y + shifts[:, :1].unsqueeze(2).unsqueeze(3)
        if self.half_result:
            y = y.half().contiguous(memory_format=torch.channels_last)
        return y[:, 4:], y[:, :4]


class TinyConditioner(nn.Module):
    def forward(self, t, days, treatments):
        return torch.cat([t.unsqueeze(1) + days[:, :1], t.unsqueeze(1) + treatments], 1)


ROUNDING = 1 + 2e-5


class OnCpu:
    """In place of the ONNX conditioner: that of the bundle's program, but for rounding."""

    width = WIDTH

    def __init__(self, conditioner):
        self.conditioner = conditioner or TinyConditioner()

    def condition(self, t, days, treatments):
        given = (torch.tensor(values, dtype=torch.float32) for values in (t, [days], [treatments]))
        with torch.no_grad():
            return (self.conditioner(*given) * ROUNDING).numpy()


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Backends of programs for 4 rows, with a conditioner program or none."""

    def written(file, data, **fields):
        (tmp_path / file).write_bytes(data)
        return SimpleNamespace(
            file=file,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            precision="fp32",
            **fields,
        )

    def make(denoiser=None, conditioner=None, *, graph=None, size=SIZE, dynamic=True):
        on_cpu = OnCpu(graph or conditioner)
        monkeypatch.setattr(program_denoiser, "load_conditioner", lambda bundle: on_cpu)
        denoiser = denoiser or Tiny()
        data = denoiser_to_program(denoiser, size)
        artefact = written("denoiser.pt2", data, batch=4, dynamic_batch=dynamic)
        other = None
        if conditioner:
            other = written("c.pt2", conditioner_to_program(conditioner), batch=None)
        manifest = SimpleNamespace(
            card=SimpleNamespace(data=SimpleNamespace(size=size), treatments=TREATMENTS),
            conditioning_width=sum(denoiser.widths),
            conditioner_program=other,
        )
        return ProgramBackend(Bundle(tmp_path, manifest, ""), artefact, 1, "cpu")

    return make


@pytest.fixture
def compiled(monkeypatch):
    """A GPU in name: torch.compile goes through Dynamo to no compiler; calls are written down."""
    events, compile_ = [], torch.compile

    def traced(module, **options):
        assert options == {"dynamic": False, "fullgraph": True}
        events.append("compile")

        def compiler(graph, given):
            events.append("trace")
            warnings.warn("TensorFloat32 tensor cores are not enabled", stacklevel=1)

            def run(*args):
                events.append("run")
                return graph.forward(*args)

            return run

        return compile_(module, backend=compiler, **options)

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty cache"))
    return events


def arrays_of(rows: int, seed: int = 0, size: int = SIZE, width: int = WIDTH):
    rng = np.random.default_rng(seed)
    shapes = [(rows, 9, size, size), (rows, 3, size, size), (1, width)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def tensors(rows: int, seed: int = 0) -> list[torch.Tensor]:
    return [torch.from_numpy(a) for a in arrays_of(rows, seed)]


@pytest.mark.parametrize("half", [False, True])
def test_tensors_and_arrays_go_the_same_way(make, half):
    backend, right = make(Tiny(half)), Tiny(half)
    denoiser = device_denoiser(backend)
    assert backend.on_device() is None
    assert not denoiser.capturable
    assert denoiser.buckets == BUCKETS
    for rows in (4, 1, 7):
        denoiser.prepare(rows)
        given, backend.batch = tensors(rows, rows), rows
        results = backend.denoise(*arrays_of(rows, rows))
        for one, other, expected in zip(denoiser(*given), results, right(*given), strict=True):
            assert one.dtype == (torch.float16 if half else torch.float32)
            assert other.dtype == np.float32
            assert other.flags.c_contiguous
            np.testing.assert_array_equal(one.float(), other)
            torch.testing.assert_close(one, expected.detach())


def test_programs_of_the_network_take_tensors(make, checkpoint):
    net = load_checkpoint(checkpoint)[0]
    fused, fused_conditioner = fuse(net, torch.float32, ends_fp32=False), fuse_conditioner(net)
    denoiser = device_denoiser(make(fused, fused_conditioner, size=32))
    shifts = denoiser.condition(np.array([431.0, 7.5]), (0, 30, 75, 160), (0, 0, 1, 1))
    request = ([[0.0, 30, 75, 160]], [[0.0, 0, 1, 1]])
    right = fused_conditioner(torch.tensor([431.0, 7.5]), *map(torch.tensor, request))
    torch.testing.assert_close(shifts, right, rtol=0, atol=0)
    denoiser.prepare(3)
    given = [torch.from_numpy(a) for a in arrays_of(3, 1, 32, shifts.shape[1])[:2]]
    for one, other in zip(denoiser(*given, shifts[1:]), fused(*given, shifts[1:]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_program", [True, False])
def test_conditions_come_from_the_bundles_program_where_it_has_one(make, has_program):
    backend = make(conditioner=TinyConditioner() if has_program else None)
    t, days, treatments = np.array([7.0, 300.5]), (5, 9, 40, 90), (0, 0, 1, 2)
    shifts = device_denoiser(backend).condition(t, days, treatments)
    on_cpu = backend.condition(t, days, treatments)
    rows = np.float32([[v + d for d in (5, 0, 0, 1, 2)] for v in t])
    np.testing.assert_array_equal(on_cpu, rows * np.float32(ROUNDING))
    np.testing.assert_array_equal(shifts, rows if has_program else on_cpu)
    assert shifts.dtype == torch.float32


class Scaled(TinyConditioner):
    def forward(self, t, days, treatments):
        return super().forward(t, days, treatments) + t.unsqueeze(1)


class Narrow(TinyConditioner):
    def forward(self, t, days, treatments):
        return super().forward(t, days, treatments)[:, 1:]


@pytest.mark.parametrize("conditioner", [Scaled, Narrow])
def test_a_conditioner_of_other_weights_is_refused(make, conditioner):
    """Its hash may be right; forecasts would be plausible and of another model."""
    with pytest.raises(NumericsError, match="from the bundle's ONNX conditioner") as e:
        make(conditioner=conditioner(), graph=TinyConditioner())
    assert e.value.code == "TD6011"


def test_every_bucket_is_compiled_for_itself_once(make, compiled):
    """Dynamo gives up after eight forms of one function."""
    denoiser, right = device_denoiser(make()), Tiny()
    denoiser.capturable = True
    for rows in BUCKETS[:10]:
        compiled.clear()
        denoiser.prepare(rows)
        assert compiled == ["empty cache", "compile", "trace", *3 * ["run"], "synchronize"]
        compiled.clear()
        denoiser.prepare(rows)
        given = tensors(rows)
        for one, expected in zip(denoiser(*given), right(*given), strict=True):
            torch.testing.assert_close(one, expected.detach())
        assert compiled == ["run"]


def test_arrays_and_tensors_have_buckets_of_their_own(make, compiled, monkeypatch):
    backend = make()
    backend._arrays.capturable = backend._tensors.capturable = True
    denoiser = backend.on_device()
    assert denoiser is device_denoiser(backend)
    denoiser.prepare(2)
    monkeypatch.setattr(backend, "_threads", torch.get_num_threads() + 1)
    right = Tiny()(*tensors(4))[0].detach()
    np.testing.assert_allclose(backend.denoise(*arrays_of(4))[0], right, rtol=1e-4, atol=1e-5)
    compiled.clear()
    denoiser(*tensors(2))
    backend.denoise(*arrays_of(4))
    backend._arrays(*tensors(4))
    assert compiled == 3 * ["run"]  # another number of threads would have been compiled for
    with pytest.raises(ValueError, match=r"sources must have shape \(4, 9, 8, 8\)"):
        backend.denoise(*arrays_of(2))
    assert backend.halve()
    assert backend.denoise(*arrays_of(2))[0].shape == (2, 3, SIZE, SIZE)


def test_a_program_of_one_batch_has_one_bucket(make):
    backend = make(dynamic=False)
    denoiser = device_denoiser(backend)
    assert denoiser.buckets == (4,)
    with pytest.raises(ValueError, match=r"one of \(4,\), got 2"):
        denoiser.prepare(2)
    assert not backend.halve()
    with pytest.raises(ValueError, match="got 0"):
        device_denoiser(make()).prepare(0)


@pytest.mark.parametrize("fault", ["rows", "channels", "width", "not prepared"])
def test_other_shapes_are_refused(make, fault):
    denoiser = device_denoiser(make())
    if fault != "not prepared":
        denoiser.prepare(4)
    given = tensors(4)
    if fault == "rows":
        given = [*tensors(2)[:2], given[2]]
    elif fault == "channels":
        given[1] = given[0]
    elif fault == "width":
        given[2] = given[2][:, 1:]
    name = {"channels": "x", "width": "shifts"}.get(fault, "sources")
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
        denoiser(*given)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA: tried to allocate 20 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory."),
    MemoryError(),
]
OTHER = RuntimeError("CUDA error: an illegal memory access was encountered")


class Failing:
    """A compiled module that takes memory and then fails with `error`."""

    def __init__(self, error):
        self.error, self.taken = error, []

    def __call__(self, *given):
        buffer = torch.ones(1000)
        self.taken.append(weakref.ref(buffer))
        raise self.error


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_where_memory_ends_in_a_call_nothing_is_kept(make, error):
    backend = make()
    denoiser = device_denoiser(backend)
    denoiser.prepare(4)
    backend._arrays.prepare(4)
    failing = denoiser._run = backend._arrays._run = Failing(error)
    with pytest.raises(ResourceError, match="batch of 4") as e:
        denoiser(*tensors(4))
    assert e.value.code == "TD7001"
    assert e.value.__context__ is None
    with pytest.raises(ResourceError) as e:
        backend.denoise(*arrays_of(4))
    error.__traceback__ = None  # it is made once, above
    assert len(failing.taken) == 2
    assert not any(buffer() is not None for buffer in failing.taken)


@pytest.mark.parametrize("error", [OTHER, ModuleNotFoundError("triton"), ValueError("groups")])
def test_other_errors_of_a_call_name_the_program(make, error):
    """Those of a hostile program, of a compiler and of CUDA; `auto` goes on to another backend."""
    denoiser = device_denoiser(make())
    denoiser.prepare(4)
    denoiser._run = Failing(error)
    with pytest.raises(EngineError, match=str(error)) as e:
        denoiser(*tensors(4))
    assert e.value.code == "TD5013"


@pytest.mark.parametrize("error", [*NO_MEMORY, OTHER], ids=str)
def test_a_bucket_that_cannot_be_prepared_is_not_half_ready(make, compiled, monkeypatch, error):
    denoiser, failing = device_denoiser(make()), Failing(error)
    denoiser.capturable = True
    monkeypatch.setattr(torch, "compile", lambda module, **options: failing)
    with pytest.raises(EngineError if error is OTHER else ResourceError) as e:
        denoiser.prepare(2)
    assert e.value.code == ("TD5013" if error is OTHER else "TD7001")
    assert e.value.__context__ is None
    error.__traceback__ = None
    assert not any(buffer() is not None for buffer in failing.taken)
    assert compiled[-1] == "empty cache"
    with pytest.raises(ValueError, match="must have shape"):
        denoiser(*tensors(2))
    monkeypatch.undo()
    denoiser.capturable = False
    denoiser.prepare(2)
    denoiser(*tensors(2))


@pytest.mark.parametrize("error", [NO_MEMORY[0], OTHER], ids=str)
def test_a_program_that_cannot_be_loaded_says_why(make, monkeypatch, error):
    def fail(file):
        raise error

    monkeypatch.setattr(torch.export, "load", fail)
    with pytest.raises(EngineError if error is OTHER else ResourceError) as e:
        make()
    assert e.value.code == ("TD5013" if error is OTHER else "TD7001")
    assert e.value.__context__ is None


def test_arrays_of_all_threads_are_computed_in_one(make):
    """cuDNN chooses algorithms for every thread anew, and the bits of a row would follow."""
    backend, seen = make(), []
    backend._arrays.prepare(4)
    module, before = backend._arrays._run, torch.get_num_threads()
    backend._threads = before + 1

    def watched(*given):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return module(*given)

    backend._arrays._run = watched
    callers = [threading.Thread(target=backend.denoise, args=arrays_of(4)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0][1] == before + 1
    assert torch.get_num_threads() == before


def test_a_backend_that_is_dropped_takes_its_weights_along(make):
    """`auto` holds one backend at a time; this one has a thread."""
    backend = make()
    backend.denoise(*arrays_of(4))
    module = weakref.ref(backend._arrays._module)
    del backend
    gc.collect()
    assert module() is None


@pytest.fixture
def arithmetic():
    """Flags of this process, put back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    names = [
        *((cudnn, name) for name in ("allow_tf32", "benchmark", "deterministic")),
        (matmul, "allow_tf32"),
        (matmul, "allow_fp16_reduced_precision_reduction"),
        (matmul, "allow_bf16_reduced_precision_reduction"),
    ]
    before = [getattr(place, name) for place, name in names]
    yield lambda: [getattr(place, name) for place, name in names]
    for (place, name), value in zip(names, before, strict=True):
        setattr(place, name, value)


def test_no_arithmetic_that_no_certificate_covers(arithmetic):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    fix_arithmetic()
    assert arithmetic() == [False, False, True, False, False, False]


def test_on_a_cpu_the_flags_of_the_process_are_left_alone(make, arithmetic):
    before = arithmetic()
    make()
    assert arithmetic() == before


def test_operators_are_registered_before_a_program_is_loaded():
    code = (
        "import tadiff_rt.backends.program; from torch import ops; "
        "ops.tadiff.attention, ops.tadiff.group_norm_silu, ops.tadiff.conditioning"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_tensors_arrays_and_replays_agree(bundle_of_targets, precision):
    opened = open_bundle(bundle_of_targets)
    _, artefact = find_artefact(f"torch:{precision}", opened)
    backend = program.load(opened, artefact, 1)
    manifest = opened.manifest

    def compare(rows: int) -> None:
        denoiser = backend.on_device()
        denoiser.prepare(rows)
        size, width = manifest.card.data.size, manifest.conditioning_width
        given = [torch.from_numpy(a).cuda() for a in arrays_of(rows, rows, size, width)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = [y.clone() for y in denoiser(*given)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        backend.batch = rows
        arrays = backend._denoise([t.cpu().numpy() for t in given])
        for one, other in zip(got, arrays, strict=True):
            np.testing.assert_array_equal(one.float().cpu().numpy(), other)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = denoiser(*given)
        for _ in range(3):
            for y in outputs:
                y.fill_(float("nan"))
            graph.replay()
            assert all(torch.equal(*pair) for pair in zip(outputs, got, strict=True))
        given[1].mul_(0.5)
        graph.replay()
        assert not torch.equal(outputs[0], got[0])

    for rows in (4, 1, 3):
        compare(rows)


@pytest.mark.gpu
def test_on_a_gpu_conditions_are_those_of_the_cpu(bundle_of_targets):
    opened = open_bundle(bundle_of_targets)
    backend = program.load(opened, find_artefact("torch:fp32", opened)[1], 1)
    request = (np.linspace(1000, 1, 50), (0, 30, 75, 160), (0, 0, 1, 1))
    shifts = backend.on_device().condition(*request)
    assert shifts.is_cuda
    right = backend.condition(*request)
    error = np.abs(shifts.cpu().numpy() - right).max() / np.abs(right).max()
    assert error < 1e-5
