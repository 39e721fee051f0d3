"""Checkpoints as training writes them: weights in safetensors, everything else in JSON beside."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import ModelFileError
from tadiff_train.network import NetworkConfig, TaDiffNet

WEIGHTS = "model.safetensors"
SIDECAR = "model.json"
FORMAT_VERSION = 1


class Sidecar(BaseModel):
    """What `model.json` holds: the network's shape, the model card, and how it was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    weights_sha256: str
    network: NetworkConfig
    card: ModelCard
    training: dict[str, float | int | str | None]


def save_checkpoint(
    folder: Path, net: TaDiffNet, card: ModelCard, training: dict[str, float | int | str | None]
) -> None:
    """Writes weights, then the sidecar with their hash; each file appears whole or not at all."""
    data = save({k: v.detach().contiguous() for k, v in net.state_dict().items()})
    sidecar = Sidecar(
        weights_sha256=hashlib.sha256(data).hexdigest(),
        network=net.config,
        card=card,
        training=training,
    )
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS, data)
    _replace(folder / SIDECAR, (sidecar.model_dump_json(indent=2) + "\n").encode())


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)


def load_checkpoint(path: Path) -> tuple[TaDiffNet, Sidecar]:
    """The network in evaluation mode and its sidecar; every key and shape must match.

    Args:
        path: a run folder, or the `model.safetensors` in it.

    Raises:
        ModelFileError: a file is missing, damaged, or does not hold this network.
    """
    if path.is_file() and path.name != WEIGHTS:
        raise ModelFileError(
            "TD4006",
            f"{path.name} is not a checkpoint of tadiff-train",
            where=str(path),
            fix="`tadiff-export` reads files of other programs; here a run folder is needed, "
            f"which holds {WEIGHTS} and {SIDECAR}",
        )
    folder = path.parent if path.name == WEIGHTS else path
    weights, sidecar_path = folder / WEIGHTS, folder / SIDECAR
    for file in (weights, sidecar_path):
        if not file.is_file():
            raise ModelFileError(
                "TD4001",
                f"{file} does not exist; a checkpoint is a folder with {WEIGHTS} and {SIDECAR}",
                fix="give the run folder that `tadiff-train fit -o RUN` wrote",
            )
    try:
        sidecar = Sidecar.model_validate_json(sidecar_path.read_bytes())
    except ValidationError as e:
        first = e.errors()[0]
        raise ModelFileError(
            "TD4018",
            f"{SIDECAR} is not a sidecar of format {FORMAT_VERSION}: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=str(sidecar_path),
            fix="use the file that training wrote, unedited",
        ) from None
    data = weights.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sidecar.weights_sha256:
        raise ModelFileError(
            "TD4017",
            f"{WEIGHTS} has sha256 {digest[:12]}..., {SIDECAR} says "
            f"{sidecar.weights_sha256[:12]}...; the weights are damaged or not these",
            where=str(weights),
            fix="copy both files again from the run folder",
        )
    try:
        state = load(data)
    except SafetensorError as e:
        raise ModelFileError(
            "TD4016", f"not a safetensors file: {e}", where=str(weights)
        ) from None
    _check(sidecar.network, state, weights)
    return network_of(sidecar.network, state), sidecar


def network_of(config: NetworkConfig, state: Mapping[str, Tensor]) -> TaDiffNet:
    """The network with these weights, in evaluation mode and in fp32.

    Built without memory, then given the tensors: no random weight can remain, and torch's global
    generator is left as it was.

    Args:
        state: every key and shape of the network. The weights are these tensors themselves where
            they are float32, so a change to one changes the other.
    """
    net = _unfilled(config)
    # Assigned tensors bring their own dtype, unlike copied ones.
    net.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    return net.eval()


def _unfilled(config: NetworkConfig) -> TaDiffNet:
    """Shapes alone."""
    with torch.device("meta"):
        return TaDiffNet(config)


def _check(config: NetworkConfig, state: Mapping[str, Tensor], where: Path) -> None:
    """ModelFileError where the tensors are not the network's, or not finite."""
    expected = {k: tuple(v.shape) for k, v in _unfilled(config).state_dict().items()}
    got = {k: tuple(v.shape) for k, v in state.items()}
    wrong = [
        f"{key}: {got.get(key, 'missing')} instead of {expected.get(key, 'nothing')}"
        for key in sorted(expected.keys() | got.keys())
        if expected.get(key) != got.get(key)
    ]
    if wrong:
        raise ModelFileError(
            "TD4014",
            f"{len(wrong)} tensors do not fit the network of {SIDECAR}; "
            f"the first: {'; '.join(wrong[:5])}",
            where=str(where),
        )
    broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ModelFileError(
            "TD4013",
            f"{len(broken)} tensors hold NaN or infinite weights, first {broken[0]}",
            where=str(where),
        )
