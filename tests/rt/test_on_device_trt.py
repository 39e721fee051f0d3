"""A TensorRT engine on tensors: addresses, streams, memory; with the stand-in of test_engines.

Tests marked gpu run a real engine.
"""

import weakref

import numpy as np
import pytest
import torch

import tests.rt.test_engines as stand_in
from tadiff_rt import engines
from tadiff_rt.backends import trt
from tadiff_rt.backends.tensors import ALIGNMENT
from tadiff_rt.errors import EngineError, ResourceError

gpu, tensorrt = stand_in.gpu, stand_in.tensorrt
NAMES = ("sources", "x_t", "shifts")


@pytest.fixture
def backend(tensorrt, tmp_path):
    return trt.load(*stand_in.bundle_of(tmp_path), threads=1)


@pytest.fixture
def denoiser(backend):
    """Prepared for 4 rows."""
    backend.on_device().prepare(4)
    return backend.on_device()


def aligned(array: np.ndarray, skip: int = 0) -> torch.Tensor:
    """A tensor `skip` floats behind an address that a runtime may be given."""
    room = torch.empty(array.size + ALIGNMENT)
    first = -room.data_ptr() % ALIGNMENT // 4 + skip
    tensor = room[first : first + array.size].view(array.shape)
    return tensor.copy_(torch.from_numpy(array))


def tensors(rows: int, seed: int = 0) -> list[torch.Tensor]:
    return [aligned(array) for array in stand_in.inputs(rows, seed)]


def test_tensors_and_arrays_go_the_same_way(backend):
    denoiser = backend.on_device()
    assert denoiser is backend.on_device()
    assert denoiser.buckets == (1, 2, 4)
    assert denoiser.capturable
    assert "TensorRT 10.9.0.34, NVIDIA A100, fp16" in denoiser.description
    for rows in (4, 1, 2):
        denoiser.prepare(rows)
        arrays = stand_in.inputs(rows, rows)
        got = [y.clone() for y in denoiser(*map(aligned, arrays))]
        backend.batch = rows
        for one, other, right in zip(
            got, backend.denoise(*arrays), stand_in.formula(*arrays), strict=True
        ):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_allclose(one, right, rtol=1e-5, atol=1e-6)


def test_conditions_come_from_onnxruntime(backend, monkeypatch):
    row = np.arange(5, dtype=np.float32)[None]
    given = []
    monkeypatch.setattr(
        backend._conditioner, "condition", lambda *args: given.append(args) or row, raising=False
    )
    shifts = backend.on_device().condition(np.array([7.0]), (0, 1, 2, 3), (1, 1, 1, 1))
    np.testing.assert_array_equal(shifts, row)
    assert given == [(np.array([7.0]), (0, 1, 2, 3), (1, 1, 1, 1))]


def test_an_address_is_set_when_it_changes(denoiser, tensorrt):
    context = tensorrt.engine.contexts[-1]()
    given = tensors(4)
    denoiser(*given)
    context.addressed.clear()
    denoiser(*given)
    assert context.addressed == []
    given[1] = tensors(4, 1)[1]
    eps, _ = denoiser(*given)
    assert context.addressed == ["x_t"]
    right = stand_in.formula(*(t.numpy() for t in given))[0]
    np.testing.assert_allclose(eps, right, rtol=1e-5, atol=1e-6)


def test_a_new_context_is_told_addresses_that_the_last_one_knew(denoiser, tensorrt, monkeypatch):
    held = {}

    def zeros(shape, **how):
        return held.setdefault(tuple(shape), torch.zeros(shape))

    monkeypatch.setattr(tensorrt.torch, "zeros", zeros)
    for rows in (2, 4):
        denoiser.prepare(rows)
        assert set(NAMES) < tensorrt.engine.contexts[-1]().at.keys()


def test_an_address_that_is_not_aligned_is_not_handed_over(denoiser, tensorrt):
    """One row of a table of shifts begins anywhere."""
    arrays = stand_in.inputs(4)
    given = [aligned(array, skip=1) for array in arrays]
    eps, _ = denoiser(*given)
    context = tensorrt.engine.contexts[-1]()
    for name, tensor in zip(NAMES, given, strict=True):
        assert context.at[name] != tensor.data_ptr()
    np.testing.assert_allclose(eps, stand_in.formula(*arrays)[0], rtol=1e-5, atol=1e-6)


def test_it_runs_on_the_callers_stream(denoiser, tensorrt):
    fake = tensorrt.torch
    fake.current, given = stand_in.Stream(fake.events, 77), tensors(4)
    fake.events.clear()
    denoiser(*given)
    assert fake.events == [("run", 77)]


def test_stream_0_is_left_for_one_of_its_own_and_back(denoiser, tensorrt):
    """On stream 0 TensorRT would wait for the GPU in every call."""
    given = tensors(4)
    tensorrt.torch.events.clear()
    denoiser(*given)
    assert tensorrt.torch.events == [("wait", 123, 0), ("run", 123), ("wait", 0, 123)]


def test_prepared_means_run_once_and_finished(denoiser, tensorrt):
    """A capture may not hold what the first run after a change of shapes does."""
    tensorrt.torch.events.clear()
    denoiser.prepare(2)
    events = tensorrt.torch.events
    assert events[:2] == [("synchronize",), ("empty cache",)]  # nothing goes that is in use
    assert events[2:] == [("run", 123), ("synchronize", 123)]
    events.clear()
    denoiser.prepare(2)
    assert not events


def test_one_bucket_is_held_at_a_time(denoiser, tensorrt, monkeypatch):
    create, alive = stand_in.Engine.create_execution_context, []

    def create_context(engine):
        alive.append(sum(context() is not None for context in engine.contexts))
        return create(engine)

    monkeypatch.setattr(stand_in.Engine, "create_execution_context", create_context)
    outputs = [weakref.ref(y) for y in denoiser(*tensors(4))]
    for rows in (1, 4, 2):
        denoiser.prepare(rows)
    assert alive == [0, 0, 0]
    assert not any(output() is not None for output in outputs)


def test_arrays_leave_alone_what_a_graph_was_captured_from(backend, denoiser, tensorrt):
    context, given = tensorrt.engine.contexts[-1], tensors(4)
    outputs = denoiser(*given)
    tensorrt.engine.calls.clear()
    for batch in (4, 2):
        assert backend.batch == batch
        arrays = stand_in.inputs(batch, 1)
        eps, _ = backend.denoise(*arrays)
        np.testing.assert_allclose(eps, stand_in.formula(*arrays)[0], rtol=1e-5, atol=1e-6)
        backend.halve()
    right = stand_in.formula(*(t.numpy() for t in given))
    np.testing.assert_allclose(outputs[0], right[0], rtol=1e-5, atol=1e-6)
    assert context() is not None
    assert denoiser(*given)[0].data_ptr() == outputs[0].data_ptr()


def test_arrays_hold_nothing_while_tensors_are_in_use(backend, tensorrt):
    (of_arrays,) = tensorrt.engine.contexts
    assert of_arrays() is not None
    backend.on_device()
    assert of_arrays() is None


def test_a_bucket_without_a_profile_is_refused(denoiser):
    with pytest.raises(ValueError, match=r"one of \(1, 2, 4\), got 3"):
        denoiser.prepare(3)
    denoiser(*tensors(4))  # and the last one is still there
    denoiser.release()
    with pytest.raises(ValueError, match="got 0"):
        denoiser.prepare(0)


@pytest.mark.parametrize("fault", ["rows", "half", "strides", "width", "device"])
def test_memory_that_is_not_as_agreed_is_not_handed_over(denoiser, fault):
    given = tensors(4)
    if fault == "rows":
        given[1] = tensors(2)[1]
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
    ("says", "error", "code"),
    [
        ("Error Code 1: Cuda Runtime (operation not permitted in capture)", EngineError, "TD5022"),
        ("Error Code 2: OutOfMemory", ResourceError, "TD7001"),
    ],
)
@pytest.mark.parametrize("call", ["address", "execute"])
def test_a_call_that_fails_says_so(denoiser, tensorrt, call, says, error, code):
    tensorrt.engine.fails, tensorrt.engine.says = call, says
    with pytest.raises(error, match=says.split(" (")[0]) as e:
        denoiser(*tensors(4))
    assert e.value.code == code
    assert e.value.__context__ is None


@pytest.mark.parametrize("call", ["context", "profile", "shape", "address", "execute", "empty"])
def test_where_memory_ends_a_smaller_bucket_can_be_prepared(denoiser, tensorrt, monkeypatch, call):
    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")

    engine = tensorrt.engine
    if call == "empty":
        monkeypatch.setattr(tensorrt.torch, "empty", fail)
    engine.fails, engine.says = call, "Error Code 2: OutOfMemory"
    with pytest.raises(ResourceError) as e:
        denoiser.prepare(2)
    assert e.value.code == "TD7001"
    # With the error still at hand, as in a handler that goes on with less:
    assert not any(context() is not None for context in engine.contexts)
    with pytest.raises(ValueError, match="must have shape"):
        denoiser(*tensors(2))
    monkeypatch.setattr(tensorrt.torch, "empty", stand_in.on_cpu().empty)
    engine.fails = ""
    denoiser.prepare(1)
    arrays = stand_in.inputs(1)
    np.testing.assert_allclose(
        denoiser(*map(aligned, arrays))[0], stand_in.formula(*arrays)[0], rtol=1e-5, atol=1e-6
    )


def test_an_error_of_arrays_keeps_no_copy_of_them(backend, tensorrt, monkeypatch):
    uploaded, from_numpy = [], torch.from_numpy

    def upload(array):
        uploaded.append(weakref.ref(tensor := from_numpy(array.copy())))
        return tensor

    monkeypatch.setattr(tensorrt.torch, "from_numpy", upload)
    tensorrt.engine.fails, tensorrt.engine.says = "execute", "out of memory"
    with pytest.raises(ResourceError) as e:
        backend.denoise(*stand_in.inputs(4))
    assert len(uploaded) == 3
    assert not any(tensor() is not None for tensor in uploaded)
    assert e.value.__context__ is None


@pytest.mark.parametrize("able", [True, False])
def test_tensorrt_for_rtx_compiles_before_it_runs(tensorrt, tmp_path, monkeypatch, able):
    """Its default replaces kernels while it runs, so that bits would depend on when."""
    configs, asked = [], []

    class Config:
        dynamic_shapes_kernel_specialization_strategy = "lazy"

    def create(engine, runtime_config):
        configs.append(runtime_config.dynamic_shapes_kernel_specialization_strategy)
        return stand_in.Context(engine)

    def capturable(context, stream):
        asked.append(stream)
        return able

    strategies = type("Strategies", (), {"EAGER": "eager"})
    tensorrt.DynamicShapesKernelSpecializationStrategy = strategies
    monkeypatch.setattr(
        stand_in.Engine, "create_runtime_config", lambda engine: Config(), raising=False
    )
    monkeypatch.setattr(stand_in.Engine, "create_execution_context", create)
    monkeypatch.setattr(stand_in.Context, "is_stream_capturable", capturable, raising=False)
    monkeypatch.setitem(stand_in.sys.modules, "tensorrt_rtx", tensorrt)
    backend = trt.load(*stand_in.bundle_of(tmp_path, runtime="tensorrt-rtx"), threads=1)
    assert configs == ["eager"]
    assert asked == [123]
    assert backend.on_device().capturable is able


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", engines.MODULES)
def test_on_a_gpu_tensors_arrays_and_replays_agree(runtime, bundle, tmp_path):
    _, backend = stand_in.load_real(runtime, bundle, tmp_path)
    denoiser, rng = backend.on_device(), np.random.default_rng(0)
    shifts = denoiser.condition(np.array([431.0, 2.0]), (0, 30, 75, 160), (0, 0, 1, 1))
    for rows in (4, 1):
        sources = rng.random((rows, 9, 32, 32), np.float32)
        x = rng.standard_normal((rows, 3, 32, 32)).astype(np.float32)
        denoiser.prepare(rows)
        given = [torch.from_numpy(a).cuda() for a in (sources, x)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = [y.clone() for y in denoiser(*given, shifts[1:])]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        backend.batch = rows
        for one, other in zip(
            got, backend.denoise(sources, x, shifts[1:].cpu().numpy()), strict=True
        ):
            np.testing.assert_array_equal(one.cpu().numpy(), other)
        if not denoiser.capturable:
            continue
        graph, row = torch.cuda.CUDAGraph(), shifts[1:].clone()
        with torch.cuda.graph(graph):
            outputs = denoiser(*given, row)
        for y in outputs:
            y.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(*pair) for pair in zip(outputs, got, strict=True))
        given[1].mul_(0.5)
        graph.replay()
        assert not torch.equal(outputs[0], got[0])
        del graph
