"""What `tadiff-export` writes: whole, certified bundles, or nothing."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tadiff_export.certify.probes import make_probes
from tadiff_export.certify.reference import Settings
from tadiff_export.checkpoint import Asked
from tadiff_export.cli import spread
from tadiff_export.judge import Judge
from tadiff_export.onnx import conditioner_to_onnx, denoiser_to_onnx
from tadiff_export.package import bundle_path, export, summary
from tadiff_export.split import Conditioner, Denoiser, split
from tadiff_export.wanted import Wanted, default_batch
from tadiff_kernels.conditioning import pack
from tadiff_rt.backends import load_backend
from tadiff_rt.backends.ort import BATCH
from tadiff_rt.bundle import MANIFEST, open_bundle
from tadiff_rt.card import ModelCard
from tadiff_rt.errors import (
    EngineError,
    ModelFileError,
    NumericsError,
    OutputError,
    TadiffError,
    UsageError,
)
from tadiff_rt.forecast import Forecaster
from tadiff_rt.preprocess import DataContract
from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint, save_checkpoint
from tadiff_train.network import NetworkConfig, TaDiffNet

SIZE = 32
LITTLE = Settings(samples=2, num_steps=1)


@pytest.fixture(scope="module")
def net(checkpoint):
    return load_checkpoint(checkpoint)[0]


@pytest.mark.parametrize(
    "probe", make_probes(NoiseSchedule.linear(1000), 2, SIZE), ids=lambda p: f"t{p.t:g}"
)
def test_both_parts_together_are_the_network(net, probe):
    conditioner, denoiser = split(net)
    days, treatments = (torch.tensor([v]).float() for v in (probe.days, probe.treatments))
    sources, x = torch.from_numpy(probe.sources), torch.from_numpy(probe.x)
    n = len(x)
    with torch.no_grad():
        shifts = conditioner(torch.tensor([probe.t]).float(), days, treatments)
        eps, logits = denoiser(sources, x, shifts)
        whole = net(
            torch.cat([sources, x], dim=1),
            torch.full((n,), probe.t),
            days.expand(n, -1),
            treatments.expand(n, -1),
            torch.full((n,), 3),
        )
    torch.testing.assert_close(eps, whole[:, 4:], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, whole[:, :4], rtol=0, atol=1e-4)


def test_one_call_of_the_conditioner_serves_all_steps(net, bundle):
    backend = load_backend("onnxruntime", open_bundle(bundle), threads=1)
    t = np.array([1000.0, 431.25, 9.7, 1.0])
    days, treatments = (0, 30, 75, 250), (0, 0, 1, 2)
    table = backend.condition(t, days, treatments)
    rows = [backend.condition(t[i : i + 1], days, treatments)[0] for i in range(len(t))]
    np.testing.assert_allclose(table, rows, rtol=0, atol=1e-5 * np.abs(table).max())
    with torch.no_grad():
        expected = split(net)[0](
            torch.tensor(t).float(),
            torch.tensor([days]).float(),
            torch.tensor([treatments]).float(),
        ).numpy()
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_embeddings_are_not_in_the_denoiser(net):
    """No sinusoid, so no engine can compute one in half precision."""
    names = {n.op_type for n in denoiser_to_onnx(Denoiser(net).eval(), SIZE).graph.node}
    assert not names & {"Sin", "Cos"}
    assert {"Sin", "Cos"} <= {n.op_type for n in conditioner_to_onnx(Conditioner(net)).graph.node}


def test_the_denoiser_is_for_any_number_of_rows(bundle, bundle_of_one):
    """One graph, whatever the batch of the manifest; the conditioner's rows are its own matter."""
    manifest = open_bundle(bundle).manifest
    (artefact,) = manifest.denoisers
    assert (artefact.batch, artefact.dynamic_batch) == (4, True)
    assert (manifest.conditioner.batch, manifest.conditioner.dynamic_batch) == (None, False)
    model = onnx.load(bundle / artefact.file)
    dimensions = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dimensions == {
        "sources": [BATCH, 9, SIZE, SIZE],
        "x_t": [BATCH, 3, SIZE, SIZE],
        "shifts": [1, manifest.conditioning_width],
        "eps": [BATCH, 3, SIZE, SIZE],
        "mask_logits": [BATCH, 4, SIZE, SIZE],
    }
    (one,) = open_bundle(bundle_of_one).manifest.denoisers
    assert (one.batch, one.sha256) == (1, artefact.sha256)


def test_batch_follows_the_image_size():
    assert (default_batch(96), default_batch(192)) == (5, 1)


def test_every_artefact_is_certified(bundle_of_targets):
    manifest = open_bundle(bundle_of_targets).manifest
    labels = [a.label for a in manifest.denoisers]
    assert labels == ["onnx fp32", "onnx fp16", "torch fp32", "torch fp16"]
    for artefact in manifest.denoisers:
        assert artefact.certificate.passed
        assert artefact.certificate.precision == artefact.precision
    for exact, half in ((0, 1), (2, 3)):
        certificate = manifest.denoisers[half].certificate
        assert any("norm" in line for line in certificate.kept_fp32)
        assert manifest.denoisers[exact].certificate.worst < certificate.worst < 1
    assert "simulated" in manifest.denoisers[1].certificate.evaluated
    elsewhere = "compiled on a GPU, and compared there with the canary"
    for artefact in manifest.denoisers:
        on_cpu = artefact.label == "torch fp16" and not torch.cuda.is_available()
        assert artefact.certificate.evaluated.endswith(elsewhere) == on_cpu
    assert manifest.conditioner_program.operators == {"conditioning": 1}
    assert manifest.conditioner.format == "onnx"


def test_half_precision_is_half_the_bytes(bundle_of_targets):
    graph, half_graph, program, half_program = open_bundle(bundle_of_targets).manifest.denoisers
    assert half_graph.bytes < 0.6 * graph.bytes
    assert half_program.bytes < 0.6 * program.bytes


def test_an_existing_bundle_is_kept(checkpoint, bundle):
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(OutputError) as e:
        export(checkpoint, bundle)
    assert e.value.code == "TD8001"
    assert (bundle / MANIFEST).read_bytes() == before


def failing(*args, **kwargs):
    raise NumericsError("TD6010", "planted")


def test_a_failed_export_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("tadiff_export.judge.certify_artefact", failing)
    with pytest.raises(NumericsError, match="planted"):
        export(checkpoint, tmp_path / "new.tadiff", settings=LITTLE)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_earlier_bundle(checkpoint, bundle, tmp_path, monkeypatch):
    copy = shutil.copytree(bundle, tmp_path / "old.tadiff")
    monkeypatch.setattr("tadiff_export.judge.certify_artefact", failing)
    with pytest.raises(NumericsError, match="planted"):
        export(checkpoint, copy, settings=LITTLE, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old.tadiff"]
    Forecaster.load(copy)


@pytest.mark.slow
def test_a_network_that_is_exported_wrongly_is_not_written(checkpoint, tmp_path, monkeypatch):
    """The attention every library has, in place of the one the weights were trained with."""
    import tadiff_export.graphs as graphs
    import tadiff_train.network as network

    exact, right = network.attend, denoiser_to_onnx

    def plain(q, k, v, query_chunk=None):
        scores = (q * q.shape[1] ** -0.25).transpose(1, 2) @ (k * k.shape[1] ** -0.25)
        return (torch.softmax(scores, -1) @ v.transpose(1, 2)).transpose(1, 2)

    def wrong(*args, **kwargs):
        network.attend = plain
        try:
            return right(*args, **kwargs)
        finally:
            network.attend = exact

    monkeypatch.setattr(graphs, "denoiser_to_onnx", wrong)
    with pytest.raises(NumericsError, match="softmax") as e:
        export(checkpoint, tmp_path / "new.tadiff", settings=LITTLE)
    assert e.value.code == "TD6010"
    assert list(tmp_path.iterdir()) == []


def scaled(*parts):
    *others, projection, bias = pack(*parts)
    return [*others, -2 * projection, bias]


def with_mlps_swapped(fourier, mlps, projections):
    time, days, treatments = mlps
    return pack(fourier, [days, time, treatments], projections)


def in_reverse_order(fourier, mlps, projections):
    return pack(fourier, mlps, projections[::-1])


def without_the_last_block(fourier, mlps, projections):
    return pack(fourier, mlps, projections[:-1])


def in_half_precision(*parts):
    *others, projection, bias = pack(*parts)
    return [*others, projection.half().float(), bias]


def not_a_number(*parts):
    *others, bias = pack(*parts)
    bias[-1] = float("nan")
    return [*others, bias]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (scaled, r"shifts \d\.\de[+-]\d\d, 1\.\de-05 allowed"),
        (with_mlps_swapped, r"shifts_l2 \d\.\de"),
        (in_reverse_order, r"shifts_l2 \d\.\de"),
        (without_the_last_block, r"shape \(4, \d+\), expected \(4, \d+\)"),
        (in_half_precision, r"shifts \d\.\de-0[45]"),
        (not_a_number, "shifts not finite"),
    ],
)
def test_a_conditioner_program_that_is_packed_wrongly_ends_the_export(
    checkpoint, tmp_path, monkeypatch, wrong, said
):
    """No certificate of a denoiser sees it: those take the shifts of the ONNX conditioner."""
    import tadiff_export.fuse as fuse

    monkeypatch.setattr(fuse, "pack", wrong)
    out, wanted = tmp_path / "new.tadiff", Wanted(targets=("torch",))
    with pytest.raises(NumericsError, match=said) as e:
        export(checkpoint, out, wanted=wanted, settings=LITTLE)
    assert e.value.code == "TD6010"
    assert "conditioner program" in e.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_heads_too_wide_for_the_kernel_cost_the_torch_programs_alone(tmp_path):
    """One head of 160 channels, where the kernel has registers for 128."""
    config = NetworkConfig(model_channels=32, num_res_blocks=1, channel_mult=(1, 5), num_heads=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        card = ModelCard(name="wide", trained_on="nothing", data=DataContract(size=SIZE))
        save_checkpoint(tmp_path / "run", TaDiffNet(config), card, {"step": 0})
    out, said = tmp_path / "new.tadiff", []
    wanted = Wanted(targets=("torch", "onnx"))
    manifest = export(tmp_path / "run", out, wanted=wanted, settings=LITTLE, say=said.append)
    assert [artefact.label for artefact in manifest.denoisers] == ["onnx fp32"]
    assert manifest.conditioner_program is None
    (rejected,) = manifest.rejected
    assert (rejected.format, rejected.precision, rejected.code) == ("torch", "fp32", "TD5023")
    assert "160 channels wide" in rejected.reason
    assert any("torch fp32 is not listed" in line for line in said)
    Forecaster.load(out)


def test_a_half_graph_that_fails_is_not_listed(checkpoint, tmp_path, monkeypatch):
    """The graph in fp32 is whole; the bundle says why there is no other."""
    import tadiff_export.graphs as graphs

    right = graphs.simulate

    def broken(model):
        rounded = right(model)
        for weight in rounded.graph.initializer:
            if weight.name.startswith("out.2.bias"):
                bias = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(bias + 5, weight.name))
        return rounded

    monkeypatch.setattr(graphs, "simulate", broken)
    said = []
    wanted = Wanted(precisions=("fp32", "fp16"))
    out = tmp_path / "new.tadiff"
    manifest = export(checkpoint, out, wanted=wanted, settings=LITTLE, say=said.append)
    assert [a.precision for a in manifest.denoisers] == ["fp32"]
    (rejected,) = manifest.rejected
    assert (rejected.format, rejected.precision, rejected.code) == ("onnx", "fp16", "TD6010")
    assert "out.2.bias" in rejected.reason
    assert not (out / "denoiser.fp16.onnx").exists()
    assert any("did not pass" in line for line in said)
    assert "not in the bundle: onnx fp16" in summary(manifest, out)
    Forecaster.load(out)


def export_there(checkpoint, out, batch, results):
    try:
        wanted = Wanted(batch=batch)
        manifest = export(checkpoint, out, wanted=wanted, settings=LITTLE, overwrite=True)
        results.put((batch, manifest.denoisers[0].batch))
    except Exception as e:  # reported by the parent
        results.put((batch, repr(e)))


@pytest.mark.slow
def test_concurrent_exports_leave_one_whole_bundle(checkpoint, tmp_path):
    """Both say that they wrote it; the later of them did."""
    out = tmp_path / "one.tadiff"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    batches = (1, 2)
    processes = [
        context.Process(target=export_there, args=(checkpoint, out, batch, results))
        for batch in batches
    ]
    for process in processes:
        process.start()
    ended = dict(results.get(timeout=300) for _ in batches)
    for process in processes:
        process.join()
    assert set(ended) == set(batches)
    done = [batch for batch, got in ended.items() if got == batch]
    assert done, ended
    bundle = open_bundle(out)
    assert bundle.manifest.denoisers[0].batch in done
    Forecaster.load(out)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [MANIFEST, "canary.bin", *(a.file for a in bundle.manifest.artefacts)]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["one.tadiff"]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("run", "folder", "run.tadiff"),
        ("run/model.safetensors", "file", "run.tadiff"),
        ("tadiff_811.ckpt", "file", "tadiff_811.tadiff"),
        ("best.v2.pt", "file", "best.v2.tadiff"),
        ("loose/weights.safetensors", "file", "loose/weights.tadiff"),
        ("loose/model.safetensors", "file", "loose/model.tadiff"),
        ("v1.5", "folder", "v1.5.tadiff"),
    ],
)
def test_names_of_bundles(tmp_path, name, kind, expected):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if kind == "folder" else path.write_bytes(b"")
    if name == "run/model.safetensors":
        (path.parent / SIDECAR).write_text("{}")
    assert bundle_path(path, None) == tmp_path / expected


def test_the_folder_one_is_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    for path in (".", ""):
        assert bundle_path(Path(path), None) == tmp_path / "run.tadiff"


def test_a_bundle_is_called_tadiff(tmp_path):
    with pytest.raises(UsageError, match=r"NAME\.tadiff"):
        bundle_path(tmp_path, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"targets": ("tpu",)}, "TD3062"),
        ({"targets": ()}, "TD3062"),
        ({"precisions": ("int8",)}, "TD3062"),
    ],
)
def test_what_cannot_be_made_is_refused_first(tmp_path, wanted, code):
    """Before the checkpoint, which does not exist, is looked at."""
    with pytest.raises(UsageError) as e:
        export(tmp_path / "absent", tmp_path / "new.tadiff", wanted=Wanted(**wanted))
    assert e.value.code == code


def test_a_builder_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="TensorRT cannot be used") as e:
        export(tmp_path, tmp_path / "new.tadiff", wanted=Wanted(targets=("tensorrt",)))
    assert e.value.code == "TD5008"
    assert "pip install 'tadiff[tensorrt]'" in e.value.fix


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"compute_capabilities": ("9.9",)}, "TD3059"),
        ({"timing_cache": Path("/absent/folder/timings")}, "TD8003"),
    ],
)
def test_what_no_builder_can_do_is_refused_first(tmp_path, wanted, code):
    wanted = Wanted(targets=("onnx", "tensorrt-rtx"), **wanted)
    with pytest.raises(TadiffError) as e:
        export(tmp_path / "absent", tmp_path / "new.tadiff", wanted=wanted)
    assert e.value.code == code


@pytest.mark.slow
def test_an_engine_that_does_not_run_here_does_not_cost_the_rest(
    checkpoint, tmp_path, monkeypatch
):
    """Built for another GPU than the one in this machine."""
    import tadiff_export.workshop as workshop

    def opened(self, artefact, data, name):
        if name == "tensorrt-rtx":
            raise EngineError("TD5003", "built for sm_86, this is sm_90")
        return right(self, artefact, data, name)

    right = Judge.opened
    monkeypatch.setattr(Judge, "opened", opened)
    monkeypatch.setattr(workshop, "unavailable", lambda name: "")
    said = []
    wanted = Wanted(targets=("onnx", "tensorrt-rtx"), batch=1)
    out = tmp_path / "new.tadiff"
    manifest = export(checkpoint, out, wanted=wanted, settings=LITTLE, say=said.append)
    assert [a.label for a in manifest.denoisers] == ["onnx fp32", "tensorrt-rtx fp32"]
    engine = manifest.denoisers[1]
    assert engine.certificate is None
    assert engine.graph_certificate.passed
    assert engine.build.buckets == (1,)
    assert any("TD5003" in line for line in said)


@pytest.mark.slow
def test_an_untrained_network_is_exported(checkpoint, tmp_path):
    """Its norms have equal weights, which the exporter shares between images and rows."""
    config = NetworkConfig(
        model_channels=64, num_res_blocks=1, channel_mult=(1, 2), attention_strides=(2,)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        card = ModelCard(name="new", trained_on="nothing", data=DataContract(size=SIZE))
        save_checkpoint(tmp_path / "run", TaDiffNet(config), card, {"step": 0})
    out = tmp_path / "new.tadiff"
    manifest = export(
        tmp_path / "run", out, wanted=Wanted(targets=("onnx", "torch")), settings=LITTLE
    )
    assert all(artefact.certificate.passed for artefact in manifest.denoisers)
    load_backend("torch", open_bundle(out), 1)  # its canary is 0 throughout


def test_a_wrong_weight_is_named(checkpoint, tmp_path, monkeypatch):
    import tadiff_export.graphs as graphs

    right = graphs.lower_group_norms

    def wrong(model):
        lowered = right(model)
        for weight in lowered.graph.initializer:
            if weight.name == "out.2.bias":
                values = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(values + 5, weight.name))
        return lowered

    monkeypatch.setattr(graphs, "lower_group_norms", wrong)
    with pytest.raises(NumericsError, match=r"Weight out\.2\.bias"):
        export(checkpoint, tmp_path / "new.tadiff", settings=LITTLE)


def test_a_size_that_does_not_halve_is_refused(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "run")
    sidecar = json.loads((copy / SIDECAR).read_text())
    sidecar["card"]["data"]["size"] = 33
    (copy / SIDECAR).write_text(json.dumps(sidecar))
    with pytest.raises(UsageError, match="not a multiple of 2") as e:
        export(copy, tmp_path / "new.tadiff")
    assert e.value.code == "TD3052"


def test_a_flag_that_contradicts_the_checkpoint_is_refused(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="4") as e:
        export(checkpoint, tmp_path / "new.tadiff", asked=Asked(num_heads=4))
    assert e.value.code == "TD3060"


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        (
            ["run", "--target", "onnx", "torch", "-o", "x"],
            ["run", "--target=onnx", "--target=torch", "-o", "x"],
        ),
        (["--target", "onnx", "run"], ["--target=onnx", "run"]),
        (["--target", "onnx,torch", "run"], ["--target=onnx", "--target=torch", "run"]),
        (["--target=onnx,torch", "run"], ["--target=onnx", "--target=torch", "run"]),
        (["--target", "tpu", "run"], ["--target=tpu", "run"]),
        (
            ["--precision", "fp32", "fp16", "--target", "torch", "run"],
            ["--precision=fp32", "--precision=fp16", "--target=torch", "run"],
        ),
        (
            ["--compute-capability", "8.6", "8.9", "run"],
            ["--compute-capability=8.6", "--compute-capability=8.9", "run"],
        ),
        (["onnx", "-o", "torch"], ["onnx", "-o", "torch"]),
        ([], []),
        (["run", "--target"], ["run", "--target"]),
        (["run", "--target", "--precision", "fp16"], ["run", "--target", "--precision=fp16"]),
        (["--target", "onnx,", "torch", "run"], ["--target=onnx", "--target=torch", "run"]),
    ],
)
def test_lists_on_the_command_line(typed, understood):
    assert spread(typed) == understood


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "run")


def refused(path, code):
    with pytest.raises(ModelFileError) as e:
        load_checkpoint(path)
    assert e.value.code == code
    return str(e.value)


def test_a_changed_weight_is_found(copy):
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-3] ^= 4
    (copy / WEIGHTS).write_bytes(data)
    refused(copy, "TD4017")


@pytest.mark.parametrize("missing", [WEIGHTS, SIDECAR])
def test_a_missing_file_is_named(copy, missing):
    (copy / missing).unlink()
    assert missing in refused(copy, "TD4001")


def test_a_sidecar_of_another_network_is_refused(copy):
    sidecar = json.loads((copy / SIDECAR).read_text())
    sidecar["network"]["channel_mult"] = [1, 3]
    (copy / SIDECAR).write_text(json.dumps(sidecar))
    assert "tensors do not fit" in refused(copy, "TD4014")


def test_an_unknown_key_of_the_sidecar_is_refused(copy):
    sidecar = json.loads((copy / SIDECAR).read_text())
    sidecar["card"]["colour"] = "blue"
    (copy / SIDECAR).write_text(json.dumps(sidecar))
    assert "colour" in refused(copy, "TD4018")


def test_weights_that_are_not_finite_are_refused(copy):
    import hashlib

    from safetensors.torch import load, save

    state = load((copy / WEIGHTS).read_bytes())
    state["out.2.bias"][1] = float("nan")
    data = save(state)
    (copy / WEIGHTS).write_bytes(data)
    sidecar = json.loads((copy / SIDECAR).read_text())
    sidecar["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (copy / SIDECAR).write_text(json.dumps(sidecar))
    assert "out.2.bias" in refused(copy, "TD4013")
