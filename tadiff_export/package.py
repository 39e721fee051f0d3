"""Writing an engine bundle: artefacts, then their parity, then the manifest."""

import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import onnx

from tadiff_export.onnx import conditioner_to_onnx, denoiser_to_onnx, operators
from tadiff_export.parity import certify
from tadiff_export.split import split
from tadiff_rt.backends import load_backend
from tadiff_rt.bundle import FORMAT_VERSION, Artefact, Bundle, Manifest, Parity
from tadiff_rt.errors import UsageError
from tadiff_rt.write import ResultFolder, write_bytes
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.network import TaDiffNet

SUFFIX = ".tadiff"


def default_batch(size: int) -> int:
    """Rows a call on a CPU, from `python -m benchmarks.network_cpu` on two cores.

    Four small images share what a call costs; of large ones a batch gains a few per cent, which
    the padding of the last batch takes back.
    """
    return 4 if size < 128 else 1


def bundle_path(checkpoint: Path, out: Path | None) -> Path:
    """Where the bundle goes: `out`, or the checkpoint's name beside it; ends in .tadiff."""
    if out is None:
        base = checkpoint if checkpoint.is_dir() else checkpoint.parent
        return base.with_name(base.name + SUFFIX)
    if out.suffix != SUFFIX:
        raise UsageError(
            "TD3051", f"a bundle is a folder NAME{SUFFIX}, got {out}", fix=f"-o {out.name}{SUFFIX}"
        )
    return out


def export(
    checkpoint: Path,
    out: Path,
    *,
    batch: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Manifest:
    """Reads a checkpoint, writes the bundle `out`, and proves that it computes the checkpoint.

    The bundle appears whole or not at all; an existing one stays until the new one is proven.

    Args:
        batch: rows a call of the denoiser; None for `default_batch`.
        say: receives one line a stage.

    Raises:
        ModelFileError: the checkpoint cannot be used.
        NumericsError: an artefact does not compute it.
        OutputError, ResourceError: the bundle cannot be written.
    """
    net, sidecar = load_checkpoint(checkpoint)
    size = sidecar.card.data.size
    if size % net.config.stride:
        raise UsageError("TD3052", f"image size {size} is not a multiple of {net.config.stride}")
    rows = batch or default_batch(size)
    with ResultFolder(out, overwrite=overwrite) as folder:
        say(f"conditioner and denoiser ({size} x {size}, {rows} at a time) to ONNX")
        models = to_onnx(net, size)
        artefacts = []
        for file, (role, model) in models.items():
            data = model.SerializeToString()
            write_bytes(folder.path / file, data)
            artefacts.append(
                Artefact(
                    file=file,
                    role=role,
                    batch=rows if role == "denoiser" else None,
                    dynamic_batch=role == "denoiser",
                    bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                    operators=operators(model),
                )
            )
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            created_by=versions(),
            card=sidecar.card,
            network=sidecar.network.model_dump(),
            conditioning_width=sum(b.channels_out for b in net.residual_blocks()),
            weights_sha256=sidecar.weights_sha256,
            artefacts=tuple(artefacts),
            parity=Parity(reference="", max_relative_error={}, allowed={}, probes=0),
        )
        say("parity with the checkpoint in float64")
        backend = load_backend("onnxruntime", Bundle(folder.path, manifest, ""))
        manifest = manifest.model_copy(update={"parity": certify(net, backend, size)})
        folder.complete(manifest.model_dump(mode="json"))
    return manifest


def to_onnx(net: TaDiffNet, size: int) -> dict[str, tuple[str, onnx.ModelProto]]:
    """File name -> (role, model) of both parts of the network."""
    conditioner, denoiser = split(net)
    return {
        "conditioner.onnx": ("conditioner", conditioner_to_onnx(conditioner)),
        "denoiser.fp32.onnx": ("denoiser", denoiser_to_onnx(denoiser, size)),
    }


def versions() -> dict[str, str]:
    """What wrote a bundle, for the manifest."""
    packages = {name: version(name) for name in ("tadiff", "torch", "onnx", "onnxscript")}
    return {"python": platform.python_version(), **packages}
