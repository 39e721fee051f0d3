"""An engine is refused before it is loaded, dies in a child, and runs with its checks.

No GPU here: TensorRT is replaced by a stand-in whose engine computes a formula, in the buffers it
is given. Tests marked gpu run the real one.
"""

import ctypes
import hashlib
import shutil
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tadiff_rt import engines
from tadiff_rt.backends import load_backend, ort, trt
from tadiff_rt.bundle import Bundle, open_bundle
from tadiff_rt.engines import Build, Device, check_build, describe_device, trial_load
from tadiff_rt.errors import EngineError, ResourceError, TadiffError

GPU = Device("NVIDIA A100", "8.0", "13.0", "580.65.06")
WEIGHTS, GRAPH = "a" * 64, "b" * 64


def record(**changes) -> Build:
    fields = {
        "runtime": "tensorrt",
        "version": "10.9.0.34",
        "platform": engines.this_platform(),
        "compute_capabilities": ("9.0",),
        "onnx_sha256": GRAPH,
        "weights_sha256": WEIGHTS,
        "buckets": (1, 2, 4),
        "workspace_bytes": 1 << 30,
        "layers": 100,
    }
    return Build(**(fields | changes))


def checked(build, **changes):
    machine = {
        "version": "10.9.0.34",
        "compute_capability": "9.0",
        "weights_sha256": WEIGHTS,
        "onnx_sha256": GRAPH,
    }
    check_build(build, **(machine | changes))


RTX = {"runtime": "tensorrt-rtx", "compute_capabilities": ("8.0", "9.0")}


def test_a_record_survives_json_unchanged():
    build = record(gpu="NVIDIA H100", driver="580.65.06", cuda="13.0")
    assert Build.model_validate_json(build.model_dump_json()) == build


@pytest.mark.parametrize(
    "wrong",
    [
        {"buckets": (4, 1)},
        {"buckets": (1, 1)},
        {"buckets": ()},
        {"buckets": (0,)},
        {"version": "10.9\x1b[2J"},
        {"version": ""},
        {"compute_capabilities": ()},
        {"compute_capabilities": ("90",)},
        {"weights_sha256": "A" * 64},
        {"strongly_typed": False},
        {"layers": 0},
        {"workspace_bytes": 0},
        {"runtime": "openvino"},
        {"platform": "Linux"},
        {"host_code": True},
    ],
    ids=str,
)
def test_a_malformed_record_is_refused(wrong):
    with pytest.raises(ValidationError):
        record(**wrong)


@pytest.mark.parametrize(
    ("build", "machine"),
    [
        (record(), {}),
        (record(), {"compute_capability": None, "onnx_sha256": None}),
        (record(**RTX), {"compute_capability": "8.0"}),
        (record(**RTX, platform="win32-amd64"), {}),  # its engines run on either system
    ],
)
def test_an_engine_of_this_machine_is_accepted(build, machine):
    checked(build, **machine)


@pytest.mark.parametrize(
    ("build", "machine", "code", "says"),
    [
        (record(), {"version": "11.4.0.2"}, "TD5003", "TensorRT 10.9.0.34 for sm_90"),
        (record(), {"version": "11.4.0.2"}, "TD5003", "this is 11.4.0.2 on sm_90"),
        (record(), {"version": "10.9.0.35"}, "TD5003", "10.9.0.35"),
        (record(), {"compute_capability": "8.0"}, "TD5003", "on sm_80"),
        (record(**RTX), {"compute_capability": "8.6"}, "TD5003", "sm_80, sm_90"),
        (record(platform="linux-aarch65"), {}, "TD5003", "linux-aarch65"),
        (record(), {"weights_sha256": "c" * 64}, "TD5005", "weights aaaaaaaaaaaa"),
        (record(), {"onnx_sha256": "c" * 64}, "TD5005", "ONNX graph bbbbbbbbbbbb"),
        (record(plugins=("GroupNorm_0",)), {}, "TD5009", "GroupNorm_0"),
    ],
)
def test_an_engine_from_elsewhere_is_refused(build, machine, code, says):
    with pytest.raises(EngineError) as e:
        checked(build, **machine)
    assert e.value.code == code
    assert says in e.value.message
    assert e.value.fix


@given(st.sets(st.integers(1, 64), min_size=1), st.integers(1, 80))
def test_the_smallest_bucket_that_holds_the_rows(buckets, rows):
    build = record(buckets=tuple(sorted(buckets)))
    fitting = [b for b in buckets if b >= rows]
    if fitting:
        assert build.bucket_for(rows) == min(fitting)
        return
    with pytest.raises(EngineError, match=str(max(buckets))) as e:
        build.bucket_for(rows)
    assert e.value.code == "TD5006"


class Cuda:
    """libcuda.so with one GPU of compute capability 12.1 and a driver for CUDA 13.2."""

    def __init__(self, fails=""):
        self.fails = fails

    def __getattr__(self, name):
        return lambda *arguments: 100 if name == self.fails else self.answer(name, *arguments)

    def answer(self, name, target, *rest):
        if name == "cuDeviceGetName":
            target.value = b"NVIDIA GB10"
        elif name == "cuDeviceGetAttribute":
            target._obj.value = {75: 12, 76: 1}[rest[0]]
        elif name != "cuInit":
            target._obj.value = {"cuDeviceGet": 0, "cuDriverGetVersion": 13020}[name]
        return 0


def test_the_driver_is_asked_what_the_gpu_is():
    device = describe_device(Cuda())
    assert device.name == "NVIDIA GB10"
    assert (device.compute_capability, device.cuda) == ("12.1", "13.2")


CALLS = ("cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDriverGetVersion")


@pytest.mark.parametrize("call", CALLS)
def test_a_driver_that_fails_is_no_gpu(call):
    assert describe_device(Cuda(fails=call)) is None


def test_a_missing_driver_is_not_a_damaged_engine(monkeypatch):
    monkeypatch.setattr(engines.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    with pytest.raises(EngineError, match="NVIDIA GPU with its driver") as e:
        trial_load(b"", "tensorrt-rtx")
    assert e.value.code == "TD5008"
    assert "onnxruntime" in e.value.fix


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(engines, "find_device", lambda: GPU)


@pytest.mark.parametrize(
    ("worker", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import os; os.abort()", "signal 6"),
        ("import os; os._exit(77)", "exit code 77"),
        ("raise ValueError('no such plan')", "ValueError: no such plan"),
        ("import time; time.sleep(60)", "after 0.5 s"),
    ],
)
def test_a_worker_that_dies_leaves_this_process_alive(gpu, monkeypatch, worker, says):
    monkeypatch.setattr(engines, "CHILD", worker)
    timeout = 0.5 if "sleep" in worker else 60
    with pytest.raises(EngineError, match=says) as e:
        trial_load(bytes(1 << 20), "tensorrt", timeout_s=timeout)  # more than a pipe holds
    assert e.value.code == "TD5004"
    assert e.value.__cause__ is None


def test_a_worker_that_the_system_kills_ran_out_of_memory(gpu, monkeypatch):
    monkeypatch.setattr(engines, "CHILD", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ResourceError, match="signal 9") as e:
        trial_load(b"", "tensorrt")
    assert e.value.code == "TD7003"


def test_no_worker_can_be_started(gpu, monkeypatch):
    monkeypatch.setattr(engines.sys, "executable", "/nowhere/python")
    with pytest.raises(ResourceError) as e:
        trial_load(b"", "tensorrt")
    assert e.value.code == "TD7003"


STAND_IN = """
import os, signal, sys
class Logger:
    ERROR = 1
    def __init__(self, severity): assert severity == 1
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, data):
        text = data.decode()
        if text == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if text == "good" * 100_000: return object()
        print(text)
"""


@pytest.fixture
def stand_in(gpu, monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_the_worker_receives_the_whole_engine(stand_in):
    trial_load(b"good" * 100_000, "tensorrt")


@pytest.mark.parametrize(
    ("engine", "code", "says"),
    [
        ("crash", "TD5004", "signal 11"),
        ("", "TD5004", "it gives no reason"),
        ("[E] Error Code 2: OutOfMemory (5 GB)", "TD7001", "5 GB"),
        ("[E] bad magic\n[E] later (cudaError 35)", "TD5004", "refuses it: bad magic"),
        ("[W] x\n[E] in Stream (cudaError 35: old)", "TD5008", "new enough"),
        ("[E] (cudaError 100: no device)", "TD5008", "new enough"),
        ("[E] (cudaError 1001: other)", "TD5004", "1001"),
    ],
)
def test_what_the_worker_says_is_passed_on(stand_in, engine, code, says):
    with pytest.raises(TadiffError) as e:
        trial_load(engine.encode(), "tensorrt")
    assert e.value.code == code
    assert says in e.value.message


def test_the_folder_one_stands_in_is_not_searched_for_tensorrt(gpu, monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("open('loaded', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(EngineError):
        trial_load(b"", "tensorrt")
    assert not (tmp_path / "loaded").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError) as e:
        trt.import_runtime("tensorrt-rtx")
    assert e.value.code == "TD5008"
    assert "pip install 'tadiff[rtx]'" in e.value.fix
    assert "onnxruntime" in e.value.fix


SIZE, WIDTH = 8, 5
SHAPES = {
    "sources": (9, SIZE, SIZE),
    "x_t": (3, SIZE, SIZE),
    "shifts": (WIDTH,),
    "eps": (3, SIZE, SIZE),
    "mask_logits": (4, SIZE, SIZE),
}


def formula(sources, x, shifts):
    """What the stand-in's engine computes."""
    total = shifts.sum()
    return 2 * x + sources[:, 3:6] - total, sources[:, 5:] * x[:, :1] + total


class Context:
    def __init__(self, engine):
        self.engine, self.bucket, self.set, self.at = engine, None, {}, {}
        self.addressed = []

    def answers(self, call):
        self.engine.calls.append(call)
        if call == self.engine.fails:
            self.engine.log.log(1, self.engine.says)
        return call != self.engine.fails

    def set_optimization_profile_async(self, index, stream):
        self.bucket = self.engine.buckets[index]
        return self.answers("profile") and stream == 123

    def set_input_shape(self, name, shape):
        self.set[name] = tuple(shape)
        return self.answers("shape") and shape == self.get_tensor_shape(name)

    def infer_shapes(self):
        return [n for n in ("sources", "x_t", "shifts") if n not in self.set]

    def get_tensor_shape(self, name):
        return [1 if name == "shifts" else self.bucket, *SHAPES[name]]

    def set_tensor_address(self, name, address):
        self.at[name] = address
        self.addressed.append(name)
        return self.answers("address")

    def execute_async_v3(self, stream):
        def array(name):
            shape = self.get_tensor_shape(name)
            memory = (ctypes.c_float * int(np.prod(shape))).from_address(self.at[name])
            return np.ctypeslib.as_array(memory).reshape(shape)

        self.engine.events.append(("run", stream))
        if not self.answers("execute") or stream == 0:
            return False
        results = formula(array("sources"), array("x_t"), array("shifts"))
        time.sleep(0.002)  # another thread that could would now change the buffers
        array("eps")[:], array("mask_logits")[:] = results
        return True


class Engine:
    def __init__(self, log, buckets=(1, 2, 4)):
        self.log, self.buckets, self.calls = log, buckets, []
        self.fails, self.says = "", "Error Code 1: Cuda Runtime"
        self.shapes, self.dtypes = dict(SHAPES), {}
        self.contexts, self.events = [], []

    @property
    def num_io_tensors(self):
        return len(self.shapes)

    def get_tensor_name(self, i):
        return list(self.shapes)[i]

    def get_tensor_shape(self, name):
        return (1 if name == "shifts" else -1, *self.shapes[name])

    def get_tensor_dtype(self, name):
        return self.dtypes.get(name, "float32")

    def create_execution_context(self):
        self.calls.append("context")
        if self.fails == "context":
            self.log.log(1, self.says)
        if self.fails == "context":
            return None
        context = Context(self)
        self.contexts.append(weakref.ref(context))
        return context


@pytest.fixture
def tensorrt(monkeypatch):
    """A stand-in for the package; `engine` is what it loads, `loads` how often it was asked."""

    class ILogger:
        WARNING = 2

    class Runtime:
        def __init__(self, log):
            module.log = log

        def deserialize_cuda_engine(self, data):
            module.loads.append(bytes(data))
            module.engine.log = module.log
            if module.engine.fails != "load":
                return module.engine
            module.log.log(1, module.engine.says)

    module = ModuleType("tensorrt")
    module.__version__, module.float32 = "10.9.0.34", "float32"
    module.ILogger, module.Runtime, module.loads = ILogger, Runtime, []
    module.engine = Engine(None)
    module.trials = []
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    module.torch = on_cpu()
    module.engine.events = module.torch.events
    module.import_torch = trt._import_torch
    monkeypatch.setattr(trt, "_import_torch", lambda runtime: module.torch)
    monkeypatch.setattr(trt, "require_device", lambda runtime: GPU)
    monkeypatch.setattr(trt, "trial_load", lambda data, runtime: module.trials.append(data))
    conditioner = SimpleNamespace(condition=lambda t, days, treatments: ("row", t))
    monkeypatch.setattr(ort, "load_conditioner", lambda bundle: conditioner, raising=False)
    return module


class OnGpu(torch.Tensor):
    def cpu(self):
        return self.clone().as_subclass(torch.Tensor)


class Stream:
    """A stream of the GPU; what waits for what is written down in `events`."""

    def __init__(self, events, handle):
        self.events, self.cuda_stream = events, handle

    def wait_stream(self, other):
        self.events.append(("wait", self.cuda_stream, other.cuda_stream))

    def synchronize(self):
        self.events.append(("synchronize", self.cuda_stream))


def on_cpu():
    """torch with the CPU in place of the GPU; `current` is the caller's stream, `events` a log."""

    def empty(shape, *, dtype, device):
        return torch.full(shape, float("nan"), dtype=dtype, device=device).as_subclass(OnGpu)

    @contextmanager
    def stream(new):
        before, fake.current = fake.current, new
        yield
        fake.current = before

    def device(kind, index):
        assert (kind, index) == ("cuda", 0)
        return torch.device("cpu")

    events = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        Stream=lambda device: Stream(events, 123),
        current_stream=lambda device: fake.current,
        stream=stream,
        synchronize=lambda: events.append(("synchronize",)),
        empty_cache=lambda: events.append(("empty cache",)),
        OutOfMemoryError=torch.cuda.OutOfMemoryError,
    )
    fake = SimpleNamespace(
        cuda=cuda,
        empty=empty,
        device=device,
        events=events,
        current=Stream(events, 0),
        zeros=torch.zeros,
        from_numpy=torch.from_numpy,
        float32=torch.float32,
        __version__="0",
    )
    return fake


PLAN = b"engine" * 50


def bundle_of(folder: Path, *, data=PLAN, batch=4, **changes):
    build = record(compute_capabilities=("8.0",), **changes)
    artefact = SimpleNamespace(
        precision="fp16",
        file="denoiser.plan",
        bytes=len(PLAN),
        sha256=hashlib.sha256(PLAN).hexdigest(),
        build=build,
        batch=batch,
    )
    manifest = SimpleNamespace(
        card=SimpleNamespace(data=SimpleNamespace(size=SIZE)),
        conditioning_width=WIDTH,
        weights_sha256=WEIGHTS,
    )
    (folder / artefact.file).write_bytes(data)
    return Bundle(folder, manifest, ""), artefact


def inputs(rows, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((1 if name == "shifts" else rows, *SHAPES[name])).astype(np.float32)
        for name in ("sources", "x_t", "shifts")
    ]


@pytest.mark.parametrize("batch", [4, 2, 3, None])
def test_the_engine_gets_its_inputs_and_returns_its_outputs(tensorrt, tmp_path, batch):
    backend = trt.load(*bundle_of(tmp_path, batch=batch), threads=1)
    assert backend.batch == {4: 4, 2: 2, 3: 4, None: 4}[batch]
    for seed in (1, 2):
        given = inputs(backend.batch, seed)
        eps, logits = backend.denoise(*given)
        for got, expected in zip((eps, logits), formula(*given), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert backend.condition(7, (), ()) == ("row", 7)
    assert backend.runtime == "TensorRT 10.9.0.34, NVIDIA A100, fp16"


def test_threads_do_not_mix_their_rows(tensorrt, tmp_path):
    backend = trt.load(*bundle_of(tmp_path), threads=1)
    wrong = []

    def work(seed):
        for k in range(5):
            given = inputs(4, 10 * seed + k)
            eps, _ = backend.denoise(*given)
            if not np.allclose(eps, formula(*given)[0], atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_halving_goes_down_the_profiles(tensorrt, tmp_path):
    backend = trt.load(*bundle_of(tmp_path, buckets=(1, 3, 4)), threads=1)
    tensorrt.engine.buckets = (1, 3, 4)
    assert backend.halve()
    assert backend.batch == 3
    given = inputs(3)
    np.testing.assert_allclose(backend.denoise(*given)[0], formula(*given)[0], atol=1e-5)
    assert backend.halve()
    assert backend.batch == 1
    assert not backend.halve()
    assert backend.batch == 1


def test_rows_that_do_not_fill_the_bucket_are_refused(tensorrt, tmp_path):
    backend = trt.load(*bundle_of(tmp_path), threads=1)
    with pytest.raises(ValueError, match=r"sources must have shape \(4, 9, 8, 8\)"):
        backend.denoise(*inputs(1))


def test_a_changed_byte_never_reaches_tensorrt(tensorrt, tmp_path):
    for k in range(len(PLAN)):
        flipped = PLAN[:k] + bytes([PLAN[k] ^ 1]) + PLAN[k + 1 :]
        with pytest.raises(EngineError) as e:
            trt.load(*bundle_of(tmp_path, data=flipped), threads=1)
        assert e.value.code == "TD5001"
    assert not tensorrt.loads
    assert not tensorrt.trials


def test_every_check_comes_before_the_engine_is_loaded(tensorrt, tmp_path, monkeypatch):
    def refuse(data, runtime):
        raise EngineError("TD5004", "worker died")

    for changes, code in (
        ({"version": "11.4.0.2"}, "TD5003"),
        ({"weights_sha256": "c" * 64}, "TD5005"),
        ({"plugins": ("p",)}, "TD5009"),
    ):
        with pytest.raises(EngineError) as e:
            trt.load(*bundle_of(tmp_path, **changes), threads=1)
        assert e.value.code == code
        assert not tensorrt.trials
    monkeypatch.setattr(trt, "trial_load", refuse)
    with pytest.raises(EngineError, match="worker died"):
        trt.load(*bundle_of(tmp_path), threads=1)
    assert not tensorrt.loads


def test_the_engine_is_tried_in_a_child_first(tensorrt, tmp_path):
    trt.load(*bundle_of(tmp_path), threads=1)
    assert tensorrt.trials == tensorrt.loads == [PLAN]


def test_an_engine_without_a_record_is_refused_with_its_hash(tensorrt, tmp_path):
    bundle, artefact = bundle_of(tmp_path)
    artefact.build = None
    with pytest.raises(EngineError) as e:
        trt.load(bundle, artefact, threads=1)
    assert e.value.code == "TD5002"
    assert artefact.sha256 in e.value.message


def test_an_engine_of_too_few_rows_is_refused(tensorrt, tmp_path):
    with pytest.raises(EngineError) as e:
        trt.load(*bundle_of(tmp_path, batch=5), threads=1)
    assert e.value.code == "TD5006"


@pytest.mark.parametrize(
    ("says", "error", "code"),
    [
        ("Error Code 1: Cuda Runtime (an illegal access)", EngineError, "TD5022"),
        ("Error Code 2: OutOfMemory (Requested size was 9)", ResourceError, "TD7001"),
        ("Cuda Runtime (out of memory)", ResourceError, "TD7001"),
    ],
)
@pytest.mark.parametrize("call", ["load", "context", "profile", "shape", "address", "execute"])
def test_no_failure_of_tensorrt_goes_unseen(tensorrt, tmp_path, call, says, error, code):
    """A False that nobody looks at leaves the last call's results in the buffers."""
    tensorrt.engine.fails, tensorrt.engine.says = call, says
    with pytest.raises(error) as e:
        trt.load(*bundle_of(tmp_path), threads=1).denoise(*inputs(4))
    assert e.value.code == code
    assert says in e.value.message


def test_an_old_complaint_is_not_todays_reason(tensorrt, tmp_path):
    backend = trt.load(*bundle_of(tmp_path), threads=1)
    tensorrt.log.log(1, "out of memory, once")
    tensorrt.engine.fails = "execute"
    with pytest.raises(EngineError, match="Cuda Runtime"):
        backend.denoise(*inputs(4))


def test_shapes_that_stay_unknown_are_refused(tensorrt, tmp_path, monkeypatch):
    monkeypatch.setattr(Context, "infer_shapes", lambda self: ["x_t"])
    with pytest.raises(EngineError, match="x_t") as e:
        trt.load(*bundle_of(tmp_path), threads=1)
    assert e.value.code == "TD5022"


@pytest.mark.parametrize("fault", ["half", "channels", "name"])
def test_an_engine_with_other_inputs_is_refused(tensorrt, tmp_path, fault):
    if fault == "half":
        tensorrt.engine.dtypes["eps"] = "float16"
    elif fault == "channels":
        tensorrt.engine.shapes["mask_logits"] = (5, SIZE, SIZE)
    else:
        tensorrt.engine.shapes = {"noise" if n == "eps" else n: s for n, s in SHAPES.items()}
    with pytest.raises(EngineError) as e:
        trt.load(*bundle_of(tmp_path), threads=1)
    assert e.value.code == "TD4108"


@pytest.mark.parametrize("where", ["buffers", "copy"])
def test_torch_out_of_memory_is_a_resource_error(tensorrt, tmp_path, monkeypatch, where):
    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")

    backend = trt.load(*bundle_of(tmp_path), threads=1)
    call = "empty" if where == "buffers" else "from_numpy"
    monkeypatch.setattr(tensorrt.torch, call, fail)
    with pytest.raises(ResourceError, match="20 GiB") as e:
        backend.halve() if where == "buffers" else backend.denoise(*inputs(4))
    assert e.value.code == "TD7001"
    assert e.value.__context__ is None


def test_an_error_of_the_driver_is_typed(tensorrt, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("CUDA error: unspecified launch failure")

    backend = trt.load(*bundle_of(tmp_path), threads=1)
    monkeypatch.setattr(tensorrt.torch, "from_numpy", fail)
    with pytest.raises(EngineError, match="launch failure") as e:
        backend.denoise(*inputs(4))
    assert e.value.code == "TD5022"


@pytest.mark.parametrize("fault", ["missing", "of the CPU"])
def test_torch_without_cuda_is_named(tensorrt, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(trt, "_import_torch", tensorrt.import_torch)
    if fault == "missing":
        monkeypatch.setitem(sys.modules, "torch", None)
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs torch with CUDA") as e:
        trt.load(*bundle_of(tmp_path), threads=1)
    assert e.value.code == "TD5008"


def test_one_log_serves_every_builder_and_runtime(tensorrt):
    log = trt.runtime_log(tensorrt)
    assert trt.runtime_log(tensorrt) is log
    for severity, text in ((3, "info"), (2, " warning\n"), (0, "internal"), (4, "Layers:\nx")):
        log.log(severity, text)
    assert list(log.problems) == ["warning", "internal"]
    assert log.layers == "Layers:\nx"
    log.clear()
    assert not log.problems
    assert not log.layers
    assert log.tail()


def load_real(runtime: str, bundle: Path, folder: Path):
    """An engine with profiles of 1 and 4 rows, built from the bundle's fp32 graph on this GPU."""
    from tadiff_export.tensorrt import RTX_COMPUTE_CAPABILITIES, build_engine

    pytest.importorskip(engines.MODULES[runtime])
    device = engines.find_device()
    if runtime == "tensorrt-rtx" and device.compute_capability not in RTX_COMPUTE_CAPABILITIES:
        pytest.skip(f"TensorRT for RTX does not build for {device.name}")
    opened = open_bundle(shutil.copytree(bundle, folder / "copy.tadiff"))
    graph = next(a for a in opened.manifest.artefacts if a.file == "denoiser.fp32.onnx")
    built = build_engine(
        opened.read(graph),
        runtime=runtime,
        buckets=(1, 4),
        workspace_bytes=4 << 30,
        weights_sha256=opened.manifest.weights_sha256,
    )
    (opened.path / "denoiser.plan").write_bytes(built.data)
    artefact = SimpleNamespace(
        precision="fp16",
        file="denoiser.plan",
        bytes=len(built.data),
        sha256=hashlib.sha256(built.data).hexdigest(),
        build=built.build,
        batch=4,
    )
    return opened, trt.load(opened, artefact, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", engines.MODULES)
def test_on_a_gpu_an_engine_computes_what_onnxruntime_does(runtime, bundle, tmp_path):
    opened, backend = load_real(runtime, bundle, tmp_path)
    reference = load_backend("onnxruntime", opened)
    rng = np.random.default_rng(0)
    sources = rng.random((4, 9, 32, 32), np.float32)
    x = rng.standard_normal((4, 3, 32, 32)).astype(np.float32)
    shifts = backend.condition(np.array([431.0]), (0, 30, 75, 160), (0, 0, 1, 1))
    expected = reference.denoise(sources, x, shifts)
    for rows in (4, 1):
        got = backend.denoise(sources[:rows], x[:rows], shifts)
        for one, other in zip(got, expected, strict=True):
            error = np.abs(one - other[:rows]).max() / np.abs(other).max()
            assert error < 1e-4  # fp32 without TF32, whose ten bits would err by 1e-3
        assert backend.halve() == (rows == 4)
