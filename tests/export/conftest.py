"""An engine of the small network, which tests of the builder and of its layers share."""

import numpy as np
import onnx
import pytest
import torch

from tadiff_export.certify.probes import make_probes
from tadiff_export.split import split
from tadiff_export.tensorrt import BuiltEngine, build_engine
from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.network import TaDiffNet
from tests.conftest import remember_graphs

WEIGHTS = "a" * 64
WORKSPACE = 4 << 30


def to_rtx(data: bytes, **changes: object) -> BuiltEngine:
    options: dict[str, object] = {
        "runtime": "tensorrt-rtx",
        "buckets": (1,),
        "workspace_bytes": WORKSPACE,
        "weights_sha256": WEIGHTS,
    }
    return build_engine(data, **(options | changes))


def feed_of(net: TaDiffNet, rows: int, size: int) -> dict[str, np.ndarray]:
    """Different rows in the later half of the schedule, and the shifts of one request."""
    probe = make_probes(NoiseSchedule.linear(1000), rows, size)[2]
    request = [probe.t], [probe.days], [probe.treatments]
    with torch.no_grad():
        shifts = split(net)[0](*(torch.tensor(values).float() for values in request))
    return {"sources": probe.sources, "x_t": probe.x, "shifts": shifts.numpy()}


@pytest.fixture(scope="session", autouse=True)
def _graphs_once() -> None:
    remember_graphs()


@pytest.fixture(scope="session")
def denoiser_graph(checkpoint) -> onnx.ModelProto:
    from tadiff_export.onnx import denoiser_to_onnx
    from tadiff_train.checkpoint import load_checkpoint

    net = load_checkpoint(checkpoint)[0]
    return denoiser_to_onnx(split(net)[1], 32, query_chunk=None)


@pytest.fixture(scope="session")
def built(denoiser_graph) -> tuple[BuiltEngine, list[tuple[str, int, int]]]:
    """The engine for one and for four rows, and the progress reported meanwhile."""
    pytest.importorskip("tensorrt_rtx")
    progress: list[tuple[str, int, int]] = []
    engine = to_rtx(
        denoiser_graph.SerializeToString(),
        buckets=(1, 4),
        progress=lambda *step: progress.append(step),
    )
    return engine, progress
