"""The bundle computes the checkpoint, and the parity check would notice if it did not."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from tadiff_export.onnx import check, conditioner_to_onnx, denoiser_to_onnx
from tadiff_export.package import bundle_path, default_batch, export
from tadiff_export.parity import certify, evaluate, in_float64, make_probes
from tadiff_export.split import Conditioner, Denoiser, split
from tadiff_kernels.accuracy import relative_error
from tadiff_rt.backends import load_backend
from tadiff_rt.backends.ort import BATCH
from tadiff_rt.bundle import open_bundle
from tadiff_rt.errors import ModelFileError, NumericsError, OutputError, UsageError
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint

SIZE = 32


@pytest.fixture(scope="module")
def net(checkpoint):
    return load_checkpoint(checkpoint)[0]


@pytest.fixture(scope="module")
def backend(bundle):
    return load_backend("onnxruntime", open_bundle(bundle), threads=1)


@pytest.mark.parametrize("probe", make_probes(2, SIZE), ids=lambda p: f"t{p.t:g}")
def test_both_parts_together_are_the_network(net, probe):
    conditioner, denoiser = split(net)
    days, treatments = (torch.tensor([v]).float() for v in (probe.days, probe.treatments))
    with torch.no_grad():
        shifts = conditioner(torch.tensor([probe.t]), days, treatments)
        eps, logits = denoiser(
            torch.from_numpy(probe.sources), torch.from_numpy(probe.x_t), shifts
        )
    whole = evaluate(net, probe, torch.float32)
    torch.testing.assert_close(eps.double(), whole["eps"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.double(), whole["mask_logits"], rtol=0, atol=1e-4)


def test_one_call_of_the_conditioner_serves_all_steps(net, backend):
    t = np.array([1000.0, 431.25, 9.7, 1.0])
    days, treatments = (0, 30, 75, 250), (0, 0, 1, 2)
    table = backend.condition(t, days, treatments)
    rows = [backend.condition(t[i : i + 1], days, treatments)[0] for i in range(len(t))]
    np.testing.assert_allclose(table, rows, rtol=0, atol=1e-5 * np.abs(table).max())
    conditioner, _ = split(net)
    with torch.no_grad():
        expected = conditioner(
            torch.tensor(t).float(),
            torch.tensor([days]).float(),
            torch.tensor([treatments]).float(),
        ).numpy()
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_float64_differs_from_float32_by_rounding_only(net):
    probe = make_probes(1, SIZE)[2]
    exact = evaluate(in_float64(net), probe, torch.float64)
    plain = evaluate(net, probe, torch.float32)
    for name in exact:
        assert 1e-9 < relative_error(plain[name], exact[name]) < 1e-4


class Planted:
    """A backend with a fault that an exporter could make."""

    def __init__(self, inner, fault):
        self._inner, self._fault = inner, fault
        self.description, self.batch = inner.description, inner.batch

    def condition(self, t, days, treatments):
        if self._fault == "time off by one":
            t = t - 1
        if self._fault == "days as weeks":
            days = [d / 7 for d in days]
        if self._fault == "treatment off by one":
            treatments = [c + 1 for c in treatments]
        if self._fault == "sources in reverse":
            days, treatments = [*days[2::-1], days[3]], [*treatments[2::-1], treatments[3]]
        return self._inner.condition(t, days, treatments)

    def denoise(self, sources, x, shifts):
        if self._fault == "sessions swapped":
            sources = np.concatenate([sources[:, 3:6], sources[:, :3], sources[:, 6:]], axis=1)
        if self._fault == "modality-major":
            n, _, h, w = sources.shape
            sources = sources.reshape(n, 3, 3, h, w).swapaxes(1, 2).reshape(sources.shape)
        if self._fault == "image transposed":
            sources = sources.swapaxes(2, 3)
        if self._fault == "half precision":
            sources, x = (a.astype(np.float16).astype(np.float32) for a in (sources, x))
        eps, logits = self._inner.denoise(np.ascontiguousarray(sources), x, shifts)
        if self._fault == "mask channels rotated":
            logits = np.roll(logits, 1, axis=1)
        if self._fault == "one row dropped":
            eps[-1] = 0
        if self._fault == "not finite":
            eps[0, 0, 0, 0] = np.nan
        return eps, logits


@pytest.mark.parametrize(
    "fault",
    [
        "time off by one",
        "days as weeks",
        "treatment off by one",
        "sources in reverse",
        "sessions swapped",
        "modality-major",
        "image transposed",
        "half precision",
        "mask channels rotated",
        "one row dropped",
        "not finite",
    ],
)
def test_parity_notices(fault, net, backend):
    with pytest.raises(NumericsError, match="from float64 PyTorch"):
        certify(net, Planted(backend, fault), SIZE)


def test_parity_accepts_the_bundle(net, backend, bundle):
    parity = certify(net, backend, SIZE)
    recorded = open_bundle(bundle).manifest.parity
    assert parity.allowed == recorded.allowed
    for name, error in parity.max_relative_error.items():
        assert 0 < error <= parity.allowed[name] < 1e-3


def test_plain_softmax_would_be_noticed(net, checkpoint, tmp_path, monkeypatch):
    """The attention every library has, in place of the one the weights were trained with."""
    import tadiff_train.network as network

    def plain(q, k, v, query_chunk=None):
        scores = (q * q.shape[1] ** -0.25).transpose(1, 2) @ (k * k.shape[1] ** -0.25)
        return (torch.softmax(scores, -1) @ v.transpose(1, 2)).transpose(1, 2)

    exact = network.attend
    faulty = {"now": plain}
    monkeypatch.setattr(network, "attend", lambda *args: faulty["now"](*args))
    model = denoiser_to_onnx(split(net)[1], SIZE)
    faulty["now"] = exact
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    good = load_backend("onnxruntime", open_bundle(export_once(checkpoint, tmp_path)), threads=1)

    class WithPlainSoftmax(Planted):
        def denoise(self, sources, x, shifts):
            return session.run(None, {"sources": sources, "x_t": x, "shifts": shifts})

    with pytest.raises(NumericsError, match="from float64 PyTorch"):
        certify(net, WithPlainSoftmax(good, ""), SIZE)


def export_once(checkpoint, tmp_path):
    out = tmp_path / "good.tadiff"
    if not out.exists():
        export(checkpoint, out, batch=4)
    return out


def test_the_graph_holds_no_paths_and_no_foreign_operators(net):
    model = denoiser_to_onnx(Denoiser(net).eval(), SIZE)
    text = model.SerializeToString()
    assert b"/tadiff" not in text
    assert b"site-packages" not in text
    assert b".py" not in text
    extra = model.graph.node.add()
    extra.op_type, extra.domain = "Evil", "com.example"
    with pytest.raises(ModelFileError, match="Evil"):
        check(model)


def test_embeddings_are_not_in_the_denoiser(net):
    """No sinusoid, so no engine can compute one in half precision."""
    names = {n.op_type for n in denoiser_to_onnx(Denoiser(net).eval(), SIZE).graph.node}
    assert not names & {"Sin", "Cos"}
    assert {"Sin", "Cos"} <= {n.op_type for n in conditioner_to_onnx(Conditioner(net)).graph.node}


def test_an_existing_bundle_is_kept(checkpoint, bundle):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(OutputError) as e:
        export(checkpoint, bundle)
    assert e.value.code == "TD8001"
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_failed_export_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tadiff_export.package.certify",
        lambda *args: (_ for _ in ()).throw(NumericsError("TD6010", "planted")),
    )
    with pytest.raises(NumericsError, match="planted"):
        export(checkpoint, tmp_path / "new.tadiff", batch=1)
    assert list(tmp_path.iterdir()) == []


def test_names_of_bundles(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert bundle_path(run, None) == tmp_path / "run.tadiff"
    assert bundle_path(run / WEIGHTS, None) == tmp_path / "run.tadiff"
    with pytest.raises(UsageError, match=r"NAME\.tadiff"):
        bundle_path(run, tmp_path / "model.onnx")


def test_the_denoiser_is_for_any_number_of_rows(bundle, bundle_of_one):
    """One graph, whatever the batch of the manifest; the conditioner's rows are its own matter."""
    manifest = open_bundle(bundle).manifest
    artefact = manifest.artefact("denoiser")
    assert (artefact.batch, artefact.dynamic_batch) == (4, True)
    conditioner = manifest.artefact("conditioner")
    assert (conditioner.batch, conditioner.dynamic_batch) == (None, False)
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
    one = open_bundle(bundle_of_one).manifest.artefact("denoiser")
    assert (one.batch, one.sha256) == (1, artefact.sha256)


def test_batch_follows_the_image_size():
    assert (default_batch(96), default_batch(192)) == (4, 1)


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


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    path = tmp_path / "tadiff.ckpt"
    path.write_bytes(b"PK\x03\x04 whatever")
    assert "tadiff.ckpt" in refused(path, "TD4006")


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
