"""Does the bundle compute the checkpoint? Its artefacts against the network in float64."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_export.split import TARGET_SLOT
from tadiff_kernels.accuracy import relative_error
from tadiff_rt.backends import Backend
from tadiff_rt.bundle import Parity
from tadiff_rt.errors import NumericsError
from tadiff_rt.noise import normal
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet

BUDGET = 8.0
"""Allowed error as a multiple of PyTorch's own fp32 error on the same probes. Two fp32 programs
that sum in different orders differ from float64 by similar, not equal, amounts."""
FLOOR = 1e-5
"""Allowed on top, relative to the output's maximum. On smooth weights PyTorch's own error falls to
4e-7, and onnxruntime, with other sums in norms and products, stays at 5e-6."""

PROBES = (
    # t, days, treatment codes: ends and middle of the schedule, early and late sessions
    (1.0, (0, 14, 30, 44), (0, 0, 0, 0)),
    (9.7, (0, 30, 60, 90), (0, 0, 1, 1)),
    (600.0, (10, 41, 56, 133), (1, 1, 1, 2)),
    (1000.0, (0, 300, 700, 1061), (2, 1, 0, 2)),
)


@dataclass(frozen=True)
class Probe:
    """One denoiser evaluation: smooth source images in [0, 1] and a noisy target."""

    t: float
    days: tuple[int, ...]
    treatments: tuple[int, ...]
    sources: NDArray[np.float32]
    x_t: NDArray[np.float32]


def make_probes(batch: int, size: int) -> list[Probe]:
    """Real-valued inputs with a zero background, different in every row and probe."""
    axis = np.linspace(-1, 1, size)
    head = (axis[:, None] ** 2 + (axis[None] / 0.8) ** 2 < 0.8).astype(np.float32)
    probes = []
    for i, (t, days, treatments) in enumerate(PROBES):
        coarse = normal(i, 0, 0, 0, (batch, 9, size // 8, size // 8))
        smooth = np.kron(coarse, np.ones((8, 8), np.float32))
        sources = (np.clip(0.5 + 0.2 * smooth, 0, 1) * head).astype(np.float32)
        x_t = normal(i, 1, 0, 0, (batch, NUM_MODALITIES, size, size))
        probes.append(Probe(t, days, treatments, sources, x_t))
    return probes


def evaluate(net: TaDiffNet, probe: Probe, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The whole published forward, not the split one, in `dtype`; results in float64."""
    b = len(probe.sources)
    x = torch.from_numpy(np.concatenate([probe.sources, probe.x_t], axis=1)).to(dtype)
    with torch.no_grad():
        y = net(
            x,
            torch.full((b,), probe.t),
            torch.tensor([probe.days]).expand(b, -1).float(),
            torch.tensor([probe.treatments]).expand(b, -1).float(),
            torch.full((b,), TARGET_SLOT),
        )
    out = y.double()
    return {"eps": out[:, -NUM_MODALITIES:], "mask_logits": out[:, :NUM_SESSIONS]}


def in_float64(net: TaDiffNet) -> TaDiffNet:
    """A copy whose convolutions, norms and attention run in float64.

    The embeddings stay in fp32, as published: there, fp32 is the definition.
    """
    exact = copy.deepcopy(net)
    for part in (exact.input_blocks, exact.middle_block, exact.output_blocks, exact.out):
        part.double()
    for block in exact.residual_blocks():
        block.emb_layers.float()
    return exact


def certify(net: TaDiffNet, backend: Backend, size: int) -> Parity:
    """Compares a loaded bundle with its checkpoint on every probe.

    Raises:
        NumericsError: an output is farther from float64 than the budget allows (TD6010).
    """
    probes = make_probes(backend.batch, size)
    exact_net = in_float64(net)
    errors: dict[str, float] = {"eps": 0.0, "mask_logits": 0.0}
    rounding = dict(errors)
    for probe in probes:
        exact = evaluate(exact_net, probe, torch.float64)
        plain = evaluate(net, probe, torch.float32)
        shifts = backend.condition(np.array([probe.t]), probe.days, probe.treatments)
        eps, logits = backend.denoise(probe.sources, probe.x_t, shifts)
        for name, got in (("eps", eps), ("mask_logits", logits)):
            error = relative_error(torch.from_numpy(got), exact[name])
            # np.maximum, not max: NaN must stay.
            errors[name] = float(np.maximum(errors[name], error))
            rounding[name] = max(rounding[name], relative_error(plain[name], exact[name]))
    allowed = {name: BUDGET * own + FLOOR for name, own in rounding.items()}
    for name, error in errors.items():
        if not error <= allowed[name]:
            raise NumericsError(
                "TD6010",
                f"{name} of {backend.description} is {error:.2e} from float64 PyTorch, relative "
                f"to its maximum; {allowed[name]:.2e} is allowed",
                fix="the export is wrong: keep the checkpoint and report this",
            )
    return Parity(
        reference="the checkpoint in PyTorch, convolutions and attention in float64",
        max_relative_error=errors,
        allowed=allowed,
        probes=len(probes),
    )
