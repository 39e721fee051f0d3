"""Fixtures every test may use: a small exported network and heads to feed it."""

import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch and onnxruntime on images of 32 x 32

import torch

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter. It is chosen where Triton is first imported, which
    # parts of PyTorch do.
    os.environ["TRITON_INTERPRET"] = "1"

SIZE = 32
SPACING_MM = 2.0


THOROUGH = ("test_corpus.py", "test_endings.py")
"""Files whose slow tests take about ten minutes together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("TADIFF_THOROUGH"):
        skip = pytest.mark.skip(reason="takes long: TADIFF_THOROUGH=1")
        for item in items:
            if item.path.name in THOROUGH and item.get_closest_marker("slow"):
                item.add_marker(skip)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that.
HANDLERS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def usual_signals() -> None:
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


usual_signals()


@pytest.fixture(autouse=True)
def _usual_signals():
    """A command owns its process and takes its signals over; in a test they go back.

    Set before as well as after: fixtures of modules run commands too, before this one.
    """
    usual_signals()
    yield
    usual_signals()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A run folder with a 2-level network of random, nowhere zero, weights."""
    from tadiff_rt.card import ModelCard
    from tadiff_rt.preprocess import DataContract
    from tadiff_train.checkpoint import save_checkpoint
    from tadiff_train.network import NetworkConfig, TaDiffNet

    rng = torch.Generator().manual_seed(7)
    config = NetworkConfig(
        num_res_blocks=1, num_heads=2, channel_mult=(1, 2), attention_strides=(2,)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)  # of the biases, which keep their initial values below
        net = TaDiffNet(config)
    for p in net.parameters():
        fan_in = max(p[0].numel(), 1) if p.ndim > 1 else 1
        noise = torch.randn(p.shape, generator=rng)
        p.data = noise / fan_in**0.5 if p.ndim > 1 else p.data + 0.1 * noise
    card = ModelCard(
        name="tiny",
        trained_on="nothing: random weights",
        data=DataContract(size=SIZE, spacing_mm=SPACING_MM, min_slices=4),
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    save_checkpoint(folder, net, card, {"step": 0})
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    """Measured speeds of tests do not end up in the user's cache."""
    os.environ["TADIFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def remember_graphs() -> None:
    """Exports of one network are traced once: torch.onnx.export is nearly all of their time."""
    import copy
    import hashlib

    import tadiff_export.graphs as graphs_module
    import tadiff_export.onnx as onnx_export
    import tadiff_export.workshop as workshop

    if graphs_module.denoiser_to_onnx is not onnx_export.denoiser_to_onnx:
        return
    graphs: dict[object, object] = {}

    def remembered(name: str):
        export = getattr(onnx_export, name)

        def get(part, *size, **options):
            weights = hashlib.sha256()
            for key, value in part.net.state_dict().items():
                weights.update(key.encode() + value.numpy().tobytes())
            key = (name, part.net.config, size, *options.items(), weights.digest())
            if key not in graphs:
                graphs[key] = export(part, *size, **options)
            return copy.deepcopy(graphs[key])

        return get

    workshop.conditioner_to_onnx = remembered("conditioner_to_onnx")
    graphs_module.denoiser_to_onnx = remembered("denoiser_to_onnx")


def export_small(checkpoint: Path, out: Path, **wanted: object) -> Path:
    """A bundle whose certificate measures little."""
    from tadiff_export.certify.reference import Settings
    from tadiff_export.package import export
    from tadiff_export.wanted import Wanted

    remember_graphs()
    export(checkpoint, out, wanted=Wanted(**wanted), settings=Settings(samples=2, num_steps=2))
    return out


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory) -> Path:
    """The exported checkpoint, batch 4."""
    return export_small(checkpoint, tmp_path_factory.mktemp("bundle") / "tiny.tadiff", batch=4)


@pytest.fixture(scope="session")
def bundle_of_one(checkpoint: Path, tmp_path_factory) -> Path:
    """The exported checkpoint, batch 1."""
    return export_small(checkpoint, tmp_path_factory.mktemp("bundle") / "single.tadiff", batch=1)


@pytest.fixture(scope="session")
def bundle_of_targets(checkpoint: Path, tmp_path_factory) -> Path:
    """The exported checkpoint as ONNX and as torch programs, in fp32 and fp16, batch 4."""
    return export_small(
        checkpoint,
        tmp_path_factory.mktemp("bundle") / "targets.tadiff",
        batch=4,
        targets=("onnx", "torch"),
        precisions=("fp32", "fp16"),
    )


def restamp(bundle: Path) -> None:
    """Makes the graphs of an edited bundle state what its manifest now says."""
    import hashlib
    import json

    import onnx

    from tadiff_export.onnx import stamp
    from tadiff_rt.bundle import MANIFEST, open_bundle
    from tadiff_rt.manifest import contract

    manifest = open_bundle(bundle).manifest
    raw = json.loads((bundle / MANIFEST).read_text())
    for artefact, entry in zip(manifest.artefacts, raw["artefacts"], strict=True):
        model = onnx.load(bundle / artefact.file)
        stated = (manifest.card, manifest.weights_sha256, artefact.role, artefact.precision)
        stamp(model, contract(*stated))
        data = model.SerializeToString()
        (bundle / artefact.file).write_bytes(data)
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (bundle / MANIFEST).write_text(json.dumps(raw))


def head(seed: int, shape: tuple[int, int, int] = (24, 28, 10)) -> np.ndarray:
    """A lopsided ellipsoid of textured tissue around 800 on a background of 0, int16."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (x + 0.1 * y) ** 2 + (y / 0.9) ** 2 + (0.8 * z) ** 2 < 0.8
    tissue = 800 + 150 * np.sin(5 * x + seed) + 60 * y + 40 * rng.standard_normal(shape)
    return np.where(inside, np.clip(tissue, 100, None), 0).astype(np.int16)


AFFINE = np.array(
    [[-SPACING_MM, 0, 0, 22], [0, SPACING_MM, 0, -30], [0, 0, SPACING_MM, -8], [0, 0, 0, 1.0]]
)
"""LAS: a left-right flip, as many scanners write it."""


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Writes a NIfTI file with equal qform and sform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


SUFFIXES = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}
SESSIONS = ((0, "CRT"), (30, "CRT"), (75, "TMZ"), (160, "TMZ"))


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory) -> Path:
    """sub-17 of a BIDS data set: four sessions of three modalities with tumour masks."""
    root = tmp_path_factory.mktemp("bids")
    write_bids_case(root)
    return root / "sub-17"


def write_bids_case(root: Path, sessions=SESSIONS) -> None:
    rows = ["session_id\tdays_from_baseline\ttreatment"]
    for i, (day, treatment) in enumerate(sessions):
        name = f"ses-{i + 1:02d}"
        rows.append(f"{name}\t{day}\t{treatment}")
        for m, suffix in enumerate(SUFFIXES.values()):
            file = f"sub-17_{name}_{suffix}.nii.gz"
            save(root / "sub-17" / name / "anat" / file, head(10 * i + m))
        mask = np.zeros((24, 28, 10), np.uint8)
        mask[8 : 12 + i, 10:15, 4:7] = 1
        folder = root / "derivatives" / "manual" / "sub-17" / name / "anat"
        save(folder / f"sub-17_{name}_desc-tumour_dseg.nii.gz", mask)
    (root / "sub-17" / "sub-17_sessions.tsv").write_text("\n".join(rows) + "\n")
