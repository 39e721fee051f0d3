"""The builder makes engines here, without a GPU.

TensorRT for RTX is the real one. TensorRT, which needs a GPU, is a stand-in that records what it
is asked for.
"""

import hashlib
import json
import os
import re
import signal
from types import ModuleType, SimpleNamespace

import pytest
from onnx import TensorProto, helper

import tadiff_export.tensorrt as tensorrt
from tadiff_rt import engines
from tadiff_rt.backends.trt import runtime_log
from tadiff_rt.engines import Device, find_device, trial_load
from tadiff_rt.errors import EngineError, UsageError
from tests.export.conftest import WEIGHTS, WORKSPACE, to_rtx

rtx = pytest.importorskip("tensorrt_rtx")


def test_the_record_says_what_was_built(built, denoiser_graph):
    engine, _ = built
    build = engine.build
    assert build.runtime == "tensorrt-rtx"
    assert build.version == rtx.__version__
    assert build.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert build.onnx_sha256 == hashlib.sha256(denoiser_graph.SerializeToString()).hexdigest()
    assert build.weights_sha256 == WEIGHTS
    assert build.buckets == (1, 4)
    assert build.workspace_bytes == WORKSPACE
    assert build.layers == len(json.loads(engine.inspector)["Layers"]) > 200
    assert build.plugins == ()
    assert (build.gpu is None) == (find_device() is None)
    weights = sum(len(w.raw_data) for w in denoiser_graph.graph.initializer)
    assert len(engine.data) > weights


def test_every_bucket_has_a_profile_of_its_rows_alone(built):
    shapes = {
        name: {tuple(t["Dimensions"]) for layer in layers for t in layer["Inputs"]}
        for name, layers in by_profile(built[0]).items()
    }
    assert (1, 9, 32, 32) in shapes["myl0"]
    assert (4, 9, 32, 32) in shapes["myl1"]
    assert (4, 9, 32, 32) not in shapes["myl0"]


def by_profile(engine):
    found = {"myl0": [], "myl1": []}
    for layer in json.loads(engine.inspector)["Layers"]:
        found[re.search(r"_(myl\d)_", layer["Name"])[1]].append(layer)
    return found


def test_progress_runs_to_the_end_of_every_phase(built):
    _, progress = built
    last = {phase: (done, of) for phase, done, of in progress}
    assert last["Building engine"][0] == last["Building engine"][1] > 1
    assert all(0 <= done <= of and of > 0 for _, done, of in progress)
    assert len(last) > 5


def tiny(node, *more, types=(TensorProto.FLOAT, TensorProto.FLOAT), rows="batch", domain=""):
    """x -> nodes -> y, images of three channels."""
    x, y = (
        helper.make_tensor_value_info(name, kind, [rows, 3, 8, 8])
        for name, kind in zip("xy", types, strict=True)
    )
    kernel = helper.make_tensor("w", types[0], [3, 3, 1, 1], [0.5] * 9)
    nodes = [helper.make_node(*n[:3], name=n[3], **(n[4] if n[4:] else {})) for n in (node, *more)]
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    graph = helper.make_graph(nodes, "g", [x], [y], [kernel])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (tiny(("Evil", "x", "y", "bad_one", {"domain": "com.evil"}), domain="com.evil"), "Evil"),
        (tiny(("NoSuchOp", "x", "y", "bad_one")), r"bad_one \(NoSuchOp\)"),
        (tiny(("Sigmoid", "x", "y", "fine"), rows=2), "fixes the number of rows"),
    ],
)
def test_a_graph_that_cannot_be_used_is_named(model, says):
    with pytest.raises(EngineError, match=says) as e:
        to_rtx(model.SerializeToString())
    assert e.value.code == "TD5020"


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "no outputs"), (bytes(50), "no outputs"), (b"garbage" * 10, "Failed to parse")],
)
def test_bytes_that_are_no_graph_are_refused(data, says):
    with pytest.raises(EngineError, match=says) as e:
        to_rtx(data)
    assert e.value.code == "TD5020"


def test_too_small_a_workspace_is_the_builders_reason(denoiser_graph):
    with pytest.raises(EngineError, match="workspace") as e:
        to_rtx(denoiser_graph.SerializeToString(), workspace_bytes=1000)
    assert e.value.code == "TD5021"
    assert "workspace" in e.value.fix


def test_engines_are_built_for_the_gpus_asked_for():
    data = tiny(("Conv", ["x", "w"], ["y"], "conv")).SerializeToString()
    engines = {c: to_rtx(data, compute_capabilities=(c,)) for c in ("8.0", "12.0")}
    assert engines["8.0"].build.compute_capabilities == ("8.0",)
    assert engines["8.0"].data != engines["12.0"].data
    with pytest.raises(UsageError, match=r"compute capability 9\.0.*8\.9.*12\.0") as e:
        to_rtx(data, compute_capabilities=("8.0", "9.0"))
    assert e.value.code == "TD3059"


class Stop(BaseException):
    """Not an Exception, as KeyboardInterrupt is none."""


def test_an_exception_of_the_progress_ends_the_build(denoiser_graph):
    seen = []

    def progress(phase, done, of):
        seen.append(phase)
        if len(seen) == 100:
            raise Stop

    with pytest.raises(Stop):
        to_rtx(denoiser_graph.SerializeToString(), progress=progress)
    assert len(seen) == 100
    assert "BuildCanceled" in runtime_log(rtx).tail()


@pytest.mark.parametrize("step", [1, 2, 3, 10, 100])
def test_ctrl_c_ends_the_build(denoiser_graph, step):
    """TensorRT's bindings print an exception in a callback and go on."""
    seen = []

    def progress(phase, done, of):
        seen.append(phase)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        to_rtx(denoiser_graph.SerializeToString(), progress=progress)
    assert "BuildCanceled" in runtime_log(rtx).tail()  # by now, not some time later
    count = len(seen)
    small = tiny(("Conv", ["x", "w"], ["y"], "conv")).SerializeToString()
    assert to_rtx(small).build.layers < 10  # of this build, not of one that went on
    assert len(seen) == count


def test_a_parser_that_fails_without_a_reason_fails(ten):
    parser = SimpleNamespace(parse=lambda data: False, num_errors=0)
    ten.OnnxParser = lambda network, log: parser
    with pytest.raises(EngineError) as e:
        to_ten()
    assert e.value.code == "TD5020"


def test_an_exception_of_the_builder_arrives(ten, monkeypatch):
    def fail(*arguments):
        raise TypeError("incompatible function arguments")

    monkeypatch.setattr(ten.Builder, "build_serialized_network", fail)
    with pytest.raises(TypeError, match="incompatible"):
        to_ten()


def test_a_build_beside_a_living_runtime_is_heard():
    """TensorRT keeps the first logger for as long as anything that was given it lives."""
    data = tiny(("Conv", ["x", "w"], ["y"], "conv")).SerializeToString()
    runtime = rtx.Runtime(runtime_log(rtx))
    runtime_log(rtx).log(rtx.ILogger.WARNING, "said before")
    first, second = to_rtx(data), to_rtx(data)
    assert first.build.layers == second.build.layers > 0
    assert first.warnings == second.warnings == ()
    del runtime


def test_a_built_engine_is_whole_but_needs_a_driver(built, monkeypatch):
    if find_device():
        pytest.skip("has a GPU")
    monkeypatch.setattr(engines, "find_device", lambda: Device("none", "8.0", "13.0", None))
    with pytest.raises(EngineError, match="cudaError 35") as e:
        trial_load(built[0].data, "tensorrt-rtx")
    assert e.value.code == "TD5008"


@pytest.mark.parametrize("fault", ["empty", "short", "long", "another file", "first byte"])
def test_damage_is_told_from_a_missing_driver(built, monkeypatch, fault):
    monkeypatch.setattr(engines, "find_device", lambda: Device("none", "8.0", "13.0", None))
    data = built[0].data
    damaged = {
        "empty": b"",
        "short": data[: len(data) // 2],
        "long": data + b"x",
        "another file": b"\x89PNG" * 100,
        "first byte": b"?" + data[1:],
    }[fault]
    with pytest.raises(EngineError) as e:
        trial_load(damaged, "tensorrt-rtx")
    assert e.value.code == "TD5004"
    assert "TensorRT for RTX refuses it" in e.value.message
    assert "Error Code" in e.value.message


@pytest.mark.parametrize("listing", ["", "Layers:\nName: a, LayerType: b, Other: c"])
def test_an_unknown_listing_is_refused(listing, monkeypatch):
    monkeypatch.setattr(tensorrt, "runtime_log", lambda trt: log_of(runtime_log(trt), listing))
    with pytest.raises(EngineError, match="list of its layers cannot be read") as e:
        to_rtx(tiny(("Conv", ["x", "w"], ["y"], "conv")).SerializeToString())
    assert e.value.code == "TD5021"


def log_of(log, listing):
    class Deaf(type(log)):
        layers = property(lambda self: listing, lambda self, value: None)

    return Deaf()


H100 = Device("NVIDIA H100", "9.0", "13.0", "580.65.06")
LAYER = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}


@pytest.fixture
def ten(monkeypatch):
    """TensorRT 10 as documented, with one GPU: no list of compute capabilities, a timing cache."""
    monkeypatch.setattr(tensorrt, "require_device", lambda runtime: H100)
    module = ModuleType("tensorrt")
    module.__version__ = "10.9.0.34"
    module.calls, module.layers, module.accepts = [], [LAYER], lambda data: True
    calls = module.calls

    class Config:
        def __init__(self):
            self.__dict__["cache"] = b""

        def __setattr__(self, name, value):
            calls.append((name, value))

        def __getattr__(self, name):
            if "compute" in name:
                raise AttributeError(name)
            return lambda *arguments: calls.append((name, *arguments))

        def add_optimization_profile(self, profile):
            calls.append(("profile", profile.shapes))
            return 0

        def create_timing_cache(self, data):
            return data

        def set_timing_cache(self, data, ignore_mismatch):
            calls.append(("timings", data, ignore_mismatch))
            self.__dict__["cache"] = data
            return module.accepts(data)

        def get_timing_cache(self):
            return SimpleNamespace(serialize=lambda: self.cache + b"+timed")

    class Profile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, name, *shapes):
            self.shapes[name] = shapes

    class Builder:
        def __init__(self, log):
            pass

        def create_network(self, flags):
            calls.append(("network", flags))
            tensor = SimpleNamespace(name="x", shape=(-1, 3, 8, 8))
            return SimpleNamespace(num_inputs=1, num_outputs=1, get_input=lambda i: tensor)

        create_builder_config = staticmethod(Config)
        create_optimization_profile = staticmethod(Profile)

        def build_serialized_network(self, network, config):
            return bytearray(b"plan")

    class Runtime:
        def __init__(self, log):
            pass

        def deserialize_cuda_engine(self, data):
            text = json.dumps({"Layers": module.layers, "Bindings": ["x"]})
            inspector = SimpleNamespace(get_engine_information=lambda form: text)
            return SimpleNamespace(create_engine_inspector=lambda: inspector)

    module.Builder, module.Runtime = Builder, Runtime
    module.ILogger = type("ILogger", (), {"WARNING": 2})
    module.IProgressMonitor = type("IProgressMonitor", (), {})
    parser = SimpleNamespace(parse=lambda data: True, num_errors=0)
    module.OnnxParser = lambda network, log: parser
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    module.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    module.BuilderFlag = SimpleNamespace(TF32="tf32")
    module.LayerInformationFormat = SimpleNamespace(JSON="json")
    monkeypatch.setattr(tensorrt, "import_runtime", lambda runtime: module)
    return module


def to_ten(**changes):
    return to_rtx(b"graph", runtime="tensorrt", **changes)


def test_tensorrt_is_asked_for_what_is_documented(ten):
    engine = to_ten(buckets=(1, 4))
    assert engine.data == b"plan"
    assert engine.build.compute_capabilities == ("9.0",)
    assert (engine.build.gpu, engine.build.driver) == ("NVIDIA H100", "580.65.06")
    assert engine.build.layers == 1
    assert ("network", 0b10) in ten.calls  # strongly typed
    assert ("clear_flag", "tf32") in ten.calls
    assert ("set_memory_pool_limit", "workspace", WORKSPACE) in ten.calls
    assert ("profiling_verbosity", "detailed") in ten.calls
    profiles = [call[1]["x"] for call in ten.calls if call[0] == "profile"]
    assert profiles == [((1, 3, 8, 8),) * 3, ((4, 3, 8, 8),) * 3]
    flags = {call[1] for call in ten.calls if call[0] == "set_flag"}
    assert not flags  # no weak types, no version compatibility, no refit
    assert not any(call[0] == "timings" for call in ten.calls)


def test_times_of_one_build_serve_the_next(ten, tmp_path):
    path = tmp_path / "timings"
    to_ten(timing_cache=path)
    to_ten(timing_cache=path)
    timings = [call[1:] for call in ten.calls if call[0] == "timings"]
    assert timings == [(b"", False), (b"+timed", False)]
    assert sorted(os.listdir(tmp_path)) == ["timings"]


def test_damaged_times_never_reach_tensorrt(ten, tmp_path):
    path = tmp_path / "timings"
    to_ten(timing_cache=path)
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:20], b"", whole[:40] + b"?" + whole[41:]):
        path.write_bytes(data)
        ten.calls.clear()
        to_ten(timing_cache=path)
        assert [call[1] for call in ten.calls if call[0] == "timings"] == [b""]


def test_times_of_another_gpu_are_not_used(ten, tmp_path):
    path = tmp_path / "timings"
    to_ten(timing_cache=path)
    ten.accepts = lambda data: data == b""
    ten.calls.clear()
    to_ten(timing_cache=path)
    assert [call[1] for call in ten.calls if call[0] == "timings"] == [b"+timed", b""]


def test_rtx_has_no_timing_cache(tmp_path):
    data = tiny(("Conv", ["x", "w"], ["y"], "conv")).SerializeToString()
    to_rtx(data, timing_cache=tmp_path / "timings")
    assert os.listdir(tmp_path) == []


def test_tensorrt_builds_for_its_own_gpu_only(ten):
    with pytest.raises(UsageError) as e:
        to_ten(compute_capabilities=("8.0",))
    assert e.value.code == "TD3059"


def test_tensorrt_without_a_gpu_says_so(ten, monkeypatch):
    monkeypatch.setattr(tensorrt, "require_device", engines.require_device)
    monkeypatch.setattr(engines, "find_device", lambda: None)
    with pytest.raises(EngineError) as e:
        to_ten()
    assert e.value.code == "TD5008"


def test_an_engine_with_a_plugin_is_not_handed_out(ten):
    ten.layers = [LAYER, LAYER | {"Name": "norm_7", "LayerType": "PluginV2"}]
    with pytest.raises(EngineError, match="norm_7") as e:
        to_ten()
    assert e.value.code == "TD5009"


def test_a_refused_profile_is_an_error(ten, monkeypatch):
    config = ten.Builder.create_builder_config
    monkeypatch.setattr(config, "add_optimization_profile", lambda self, profile: -1)
    with pytest.raises(EngineError, match="profile for 1 rows") as e:
        to_ten()
    assert e.value.code == "TD5021"


def test_an_engine_that_does_not_load_is_not_handed_out(ten, monkeypatch):
    monkeypatch.setattr(ten.Runtime, "deserialize_cuda_engine", lambda self, data: None)
    with pytest.raises(EngineError, match="does not load") as e:
        to_ten()
    assert e.value.code == "TD5021"
