"""onnxruntime on tensors: bindings, streams, memory. Its CPU sessions stand in for those of a GPU.

Tests marked gpu run the CUDA provider.
"""

import weakref
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

import tests.rt.test_engines as stand_in
from tadiff_rt.backends import (
    find_artefact,
    load_backend,
    ort,
    ort_cuda,
    ort_denoiser,
    ort_tensorrt,
)
from tadiff_rt.backends.ort_denoiser import OrtDenoiser
from tadiff_rt.backends.tensors import BUCKETS, through_host
from tadiff_rt.bundle import open_bundle
from tadiff_rt.errors import EngineError, ResourceError
from tests.rt.test_on_device_trt import aligned

STATE = onnxruntime.capi.onnxruntime_pybind11_state
NO_MEMORY = "Failed to allocate memory for requested buffer of size 21474836480"
NO_WAIT = "disable_synchronize_execution_providers"
NAMES = ("sources", "x_t", "shifts")


class Binding:
    """Of a CPU session, for what is said to lie on the GPU."""

    def __init__(self, gpu, real):
        self.gpu, self.real, self.at = gpu, real, {}

    def bind_input(self, name, kind, index, dtype, shape, address):
        assert (kind, index) == ("cuda", 0)
        self.gpu.bound.append(name)
        self.at[name] = address
        self.real.bind_input(name, "cpu", 0, dtype, shape, address)

    def bind_output(self, name, kind, index, dtype, shape, address):
        assert (kind, index) == ("cuda", 0)
        self.at[name] = address
        self.real.bind_output(name, "cpu", 0, dtype, shape, address)


class Session:
    def __init__(self, gpu, real):
        self.gpu, self.real = gpu, real
        gpu.sessions.append(weakref.ref(self))

    def io_binding(self):
        self.gpu.binding = Binding(self.gpu, self.real.io_binding())
        return self.gpu.binding

    def run_with_iobinding(self, binding, options):
        self.gpu.torch.events.append(("run", options.get_run_config_entry(NO_WAIT)))
        if self.gpu.fails:
            raise self.gpu.fails
        self.real.run_with_iobinding(binding.real, options)


class Gpu:
    """What onnxruntime is asked for; `fails` is raised in every run, `refuses` on loading."""

    def __init__(self):
        self.torch = stand_in.on_cpu()
        self.sessions, self.providers, self.bound, self.alive = [], [], [], []
        self.fails = self.refuses = self.binding = None

    def find(self, package):
        assert package == "torch"
        if self.torch is None:
            raise ImportError(package)
        return self.torch

    def open(self, bundle, artefact, rows, options, providers):
        self.alive.append(sum(session() is not None for session in self.sessions))
        self.providers.append(providers)
        if self.refuses:
            raise self.refuses
        return Session(self, ort.denoiser_session(bundle, artefact, rows, options))


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(ort_denoiser, "denoiser_session", gpu.open)
    # Only there: PyTorch imports parts of itself when they are first needed.
    monkeypatch.setattr(ort_cuda, "importlib", SimpleNamespace(import_module=gpu.find))
    return gpu


@pytest.fixture
def opened(bundle):
    return open_bundle(bundle)


@pytest.fixture
def backend(gpu, opened):
    return ort_cuda.load(opened, find_artefact("onnxruntime", opened)[1], 1)


@pytest.fixture
def denoiser(backend):
    """Prepared for 4 rows."""
    backend.on_device().prepare(4)
    return backend.on_device()


def arrays_of(opened, rows: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    manifest = opened.manifest
    size, width = manifest.card.data.size, manifest.conditioning_width
    shapes = [(rows, 9, size, size), (rows, 3, size, size), (1, width)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_tensors_and_arrays_go_the_same_way(backend, opened):
    denoiser, reference = backend.on_device(), load_backend("onnxruntime", opened, 1)
    assert denoiser.buckets == BUCKETS
    assert not denoiser.capturable
    assert (backend.name, backend.batch) == ("onnxruntime-cuda", 4)
    assert backend.runtime == denoiser.description
    for rows in (4, 2, 3):
        denoiser.prepare(rows)
        arrays = arrays_of(opened, rows, rows)
        got = [y.clone() for y in denoiser(*map(aligned, arrays))]
        backend.batch = reference.batch = rows
        reference._denoiser = reference._load_denoiser(rows)
        right = reference.denoise(*arrays)
        for one, other, expected in zip(got, backend.denoise(*arrays), right, strict=True):
            np.testing.assert_array_equal(one, expected)
            np.testing.assert_array_equal(other, expected)


def test_conditions_come_from_onnxruntime(backend):
    given = (np.array([7.0, 300.5]), (0, 9, 40, 90), (0, 0, 1, 2))
    np.testing.assert_array_equal(backend.on_device().condition(*given), backend.condition(*given))


def test_every_provider_works_on_a_stream_that_is_not_0(backend, gpu, opened):
    """onnxruntime takes 0 for none, and makes its own, which waits for nobody."""
    assert gpu.providers == [
        [
            (
                "CUDAExecutionProvider",
                {
                    "cudnn_conv_algo_search": "HEURISTIC",
                    "use_tf32": "0",
                    "user_compute_stream": "123",
                },
            )
        ]
    ]
    artefact = find_artefact("onnxruntime", opened)[1]
    other = ort_tensorrt.load(opened, artefact, 1)
    assert other.name == "onnxruntime-tensorrt"
    (tensorrt, options), (cuda, less) = gpu.providers[-1]
    assert (tensorrt, cuda) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["user_compute_stream"] == less["user_compute_stream"] == "123"
    assert options["trt_fp16_enable"] is False
    assert "TensorrtExecutionProvider" in other.runtime


@pytest.mark.parametrize("caller", [0, 77])
def test_the_gpu_orders_the_streams_and_nothing_waits(denoiser, gpu, opened, caller):
    fake, given = gpu.torch, [aligned(a) for a in arrays_of(opened, 4)]
    fake.current = stand_in.Stream(fake.events, caller)
    fake.events.clear()
    denoiser(*given)
    assert fake.events == [("wait", 123, caller), ("run", "1"), ("wait", caller, 123)]


def test_an_address_is_bound_when_it_changes(denoiser, gpu, opened):
    given = [aligned(a) for a in arrays_of(opened, 4)]
    first = denoiser(*given)
    gpu.bound.clear()
    second = denoiser(*given)
    assert gpu.bound == []
    assert [y.data_ptr() for y in first] == [y.data_ptr() for y in second]
    before = second[0].clone()
    given[1] = aligned(arrays_of(opened, 4, 1)[1])
    eps, _ = denoiser(*given)
    assert gpu.bound == ["x_t"]
    assert not torch.equal(before, eps)


def test_a_new_session_is_told_addresses_that_the_last_one_knew(denoiser, gpu, monkeypatch):
    held = {}

    def zeros(shape, device):
        return held.setdefault(tuple(shape), torch.zeros(shape))

    monkeypatch.setattr(gpu.torch, "zeros", zeros)
    for rows in (2, 3):
        gpu.bound.clear()
        denoiser.prepare(rows)
        assert sorted(gpu.bound) == sorted(NAMES)


def test_an_address_that_is_not_aligned_is_not_handed_over(denoiser, gpu, opened):
    arrays = arrays_of(opened, 4)
    right = denoiser(*map(aligned, arrays))[0].clone()
    given = [aligned(a, skip=1) for a in arrays]
    torch.testing.assert_close(denoiser(*given)[0], right, rtol=0, atol=0)
    for name, tensor in zip(NAMES, given, strict=True):
        assert gpu.binding.at[name] != tensor.data_ptr()


def test_one_session_is_held_at_a_time(denoiser, gpu, opened):
    outputs = [weakref.ref(y) for y in denoiser(*map(aligned, arrays_of(opened, 4)))]
    gpu.torch.events.clear()
    denoiser.prepare(2)
    assert gpu.torch.events[:2] == [("synchronize",), ("empty cache",)]
    assert gpu.torch.events[-1] == ("synchronize", 123)
    assert not any(output() is not None for output in outputs)
    gpu.torch.events.clear()
    denoiser.prepare(2)
    assert not gpu.torch.events
    denoiser.prepare(1)
    assert gpu.alive == [0] * 4  # one of arrays, three of tensors
    with pytest.raises(ValueError, match=r"sources must have shape \(1, 9"):
        denoiser(*map(aligned, arrays_of(opened, 2)))


def test_arrays_and_tensors_have_buckets_of_their_own(backend, denoiser, opened):
    arrays, given = arrays_of(opened, 4), [aligned(a) for a in arrays_of(opened, 4, 1)]
    outputs = denoiser(*given)
    before = outputs[0].clone()
    assert not np.array_equal(backend.denoise(*arrays)[0], before)
    torch.testing.assert_close(outputs[0], before, rtol=0, atol=0)
    assert backend.halve()
    assert backend.batch == 2
    assert backend.denoise(*arrays_of(opened, 2))[0].shape[0] == 2
    assert denoiser(*given)[0].data_ptr() == outputs[0].data_ptr()


def test_a_graph_of_one_batch_has_one_bucket(gpu, opened):
    artefact = find_artefact("onnxruntime", opened)[1].model_copy(update={"dynamic_batch": False})
    denoiser = OrtDenoiser(opened, artefact, 1, [(ort_cuda.CUDA, {})], gpu.torch)
    assert denoiser.buckets == (4,)
    with pytest.raises(ValueError, match=r"one of \(4,\), got 2"):
        denoiser.prepare(2)
    artefact = find_artefact("onnxruntime", opened)[1]
    with pytest.raises(ValueError, match="got 0"):
        OrtDenoiser(opened, artefact, 1, [(ort_cuda.CUDA, {})], gpu.torch).prepare(0)


@pytest.mark.parametrize("fault", ["rows", "half", "strides", "width", "device"])
def test_memory_that_is_not_as_agreed_is_not_handed_over(denoiser, opened, fault):
    given = [aligned(a) for a in arrays_of(opened, 4)]
    if fault == "rows":
        given[1] = given[1][:2]
    elif fault == "half":
        given[0] = given[0].half()
    elif fault == "strides":
        given[1] = given[1].to(memory_format=torch.channels_last)
    elif fault == "width":
        given[2] = given[2][:, :-1]
    else:
        given[2] = given[2].to("meta")
    name = {"rows": "x_t", "half": "sources", "strides": "x_t"}.get(fault, "shifts")
    with pytest.raises(ValueError, match=f"^{name} must"):
        denoiser(*given)


@pytest.mark.parametrize(
    ("raised", "error", "code"),
    [
        (STATE.RuntimeException(NO_MEMORY), ResourceError, "TD7001"),
        (STATE.Fail("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"), ResourceError, "TD7001"),
        (STATE.Fail("CUDA failure 2: out of memory"), ResourceError, "TD7001"),
        (MemoryError(), ResourceError, "TD7001"),
        (torch.cuda.OutOfMemoryError("20 GiB"), ResourceError, "TD7001"),
        (STATE.Fail("CUDA failure 700: an illegal memory access"), EngineError, "TD5022"),
    ],
    ids=str,
)
def test_where_a_run_fails_the_error_keeps_nothing(
    backend, denoiser, gpu, opened, raised, error, code
):
    backend.denoise(*arrays_of(opened, 4))
    gpu.fails = raised
    for fail in (
        lambda: denoiser(*map(aligned, arrays_of(opened, 4))),
        lambda: backend.denoise(*arrays_of(opened, 4)),
        lambda: denoiser.prepare(2),
    ):
        with pytest.raises(error) as e:
            fail()
        assert e.value.code == code
        assert e.value.__context__ is None
    backend.on_device()
    raised.__traceback__ = None
    assert not any(session() is not None for session in gpu.sessions)
    gpu.fails = None
    denoiser.prepare(1)
    denoiser(*map(aligned, arrays_of(opened, 1)))


@pytest.mark.parametrize(
    ("says", "error", "code"),
    [
        ("CUDA error: unspecified launch failure", EngineError, "TD5022"),
        ("CUDA out of memory. Tried to allocate 20 GiB", ResourceError, "TD7001"),
    ],
)
def test_what_pytorch_finds_on_the_way_is_typed(backend, gpu, opened, says, error, code):
    def fail(array):
        raise RuntimeError(says)

    gpu.torch.from_numpy = fail
    with pytest.raises(error, match=says[:20]) as e:
        backend.denoise(*arrays_of(opened, 4))
    assert e.value.code == code
    assert e.value.__context__ is None


@pytest.mark.parametrize("where", ["load", "outputs"])
def test_a_bucket_that_does_not_fit_is_a_resource_error(backend, gpu, monkeypatch, where):
    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")

    if where == "load":
        gpu.refuses = EngineError("TD5013", f"onnxruntime cannot load x: {NO_MEMORY}")
    else:
        monkeypatch.setattr(gpu.torch, "empty", fail)
    with pytest.raises(ResourceError, match="batch of 2") as e:
        backend.on_device().prepare(2)
    assert e.value.code == "TD7001"
    assert not any(session() is not None for session in gpu.sessions)


def test_what_cannot_be_loaded_stays_what_it_is(backend, gpu):
    gpu.refuses = EngineError("TD5013", "onnxruntime cannot load x: no kernel for Conv")
    with pytest.raises(EngineError, match="no kernel for Conv") as e:
        backend.on_device().prepare(2)
    assert e.value.code == "TD5013"


@pytest.mark.parametrize("torch_is", ["missing", "of the CPU"])
def test_without_a_torch_of_the_gpu_arrays_go_through_buffers(gpu, opened, monkeypatch, torch_is):
    if torch_is == "missing":
        gpu.torch = None
    else:
        gpu.torch.cuda.is_available = lambda: False
    monkeypatch.setattr(ort_cuda.OrtCudaBackend, "_load_denoiser", lambda self, rows: None)
    loaded = ort_cuda.load(opened, find_artefact("onnxruntime", opened)[1], 1)
    assert loaded.on_device() is None
    assert loaded.name == "onnxruntime-cuda"
    assert "CUDAExecutionProvider, fp32" in loaded.runtime


def test_buckets_are_powers_of_two_and_what_lies_between():
    powers = [1 << k for k in range(7)]
    expected = {p * k // 4 for p in powers for k in (4, 5, 6) if p * k % 4 == 0}
    assert list(BUCKETS) == sorted(b for b in expected if b <= 64)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_tensors_and_arrays_agree(bundle_of_targets, precision):
    if ort_cuda.unavailable(""):
        pytest.skip(ort_cuda.unavailable(""))
    opened = open_bundle(bundle_of_targets)
    name, artefact = find_artefact(f"onnxruntime-cuda:{precision}", opened)
    backend = ort_cuda.load(opened, artefact, 1)
    assert backend.name == name
    denoiser = backend.on_device()
    for rows in (4, 1):
        denoiser.prepare(rows)
        arrays = arrays_of(opened, rows, rows)
        given = [torch.from_numpy(a).cuda() for a in arrays]
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = [y.clone() for y in denoiser(*given)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        # Two sessions may choose different algorithms: bits are compared within one.
        again = through_host(torch, denoiser, arrays)
        backend.batch = rows
        for one, other, of_arrays in zip(got, again, backend.denoise(*arrays), strict=True):
            np.testing.assert_array_equal(one.cpu().numpy(), other)
            assert np.abs(other - of_arrays).max() < 0.01 * np.abs(other).max()
        given[1].mul_(0.5)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            moved = denoiser(*given)[0].clone()
        side.synchronize()
        assert not torch.equal(moved, got[0])
