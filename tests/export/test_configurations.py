"""The published configurations, end to end: ONNX in fp32 and fp16, a program and an engine."""

import json

import pytest
import torch

from tadiff_export.certify.reference import Settings
from tadiff_export.package import export
from tadiff_export.wanted import Wanted
from tadiff_rt.bundle import open_bundle
from tadiff_rt.card import ModelCard
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import save_checkpoint
from tadiff_train.network import NetworkConfig, TaDiffNet

SIZE = 48
CONFIGURATIONS = {
    "A": NetworkConfig(model_channels=32, num_res_blocks=2, num_heads=4),
    "B": NetworkConfig(model_channels=32, num_res_blocks=1, num_heads=1),
    "C": NetworkConfig(model_channels=64, num_res_blocks=2, num_heads=8),
}


def random_weights(config):
    """Nowhere zero, at a scale at which activations neither grow nor fade."""
    rng = torch.Generator().manual_seed(11)
    net = TaDiffNet(config)
    for p in net.parameters():
        noise = torch.randn(p.shape, generator=rng)
        p.data = noise / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else p.data + 0.1 * noise
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_published_configuration_is_exported_and_certified(name, tmp_path):
    card = ModelCard(name=name, trained_on="nothing", data=DataContract(size=SIZE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        save_checkpoint(tmp_path / "run", random_weights(CONFIGURATIONS[name]), card, {"step": 0})
    said = []
    manifest = export(
        tmp_path / "run",
        tmp_path / f"{name}.tadiff",
        wanted=Wanted(targets=("onnx", "tensorrt-rtx"), precisions=("fp32", "fp16"), batch=1),
        settings=Settings(samples=2, num_steps=2),
        say=said.append,
    )
    assert manifest.rejected == ()
    labels = {a.label: a for a in manifest.denoisers}
    assert set(labels) == {f"{f} {p}" for f in ("onnx", "tensorrt-rtx") for p in ("fp32", "fp16")}
    bundle = open_bundle(tmp_path / f"{name}.tadiff")
    for label, artefact in labels.items():
        bundle.read(artefact)
        certified = artefact.certificate or artefact.graph_certificate
        assert certified.passed
        if label.startswith("onnx"):
            assert artefact.certificate.worst < 1
            continue
        # Nothing was remarked on: every layer of the graph is in one layer of the engine.
        assert artefact.build.buckets == (1,)
        layers = json.loads((bundle.path / f"{artefact.file}.layers.json").read_text())
        assert len(layers["Layers"]) == artefact.build.layers
    remarks = [line for line in said if "engine" in line and "not run here" not in line]
    assert remarks == []
