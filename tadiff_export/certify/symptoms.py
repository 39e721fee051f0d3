"""Which part of an artefact is wrong: its conditioner, its rows, or its denoiser."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tadiff_export.certify.conditions import Condition
from tadiff_export.certify.images import Images, Result
from tadiff_export.certify.probes import Probe, make_probes
from tadiff_rt.backends import Backend
from tadiff_rt.card import ModelCard
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet

CONDITION_LIMIT = 1e-4
"""Allowed relative error of shifts: fp32 in artefacts of every precision, phases of some 100."""

CLEARLY = 0.25
"""An explanation must leave at most so much of the artefact's difference from the truth. One that
is unrelated leaves all of it, and more."""


@dataclass(frozen=True, eq=False)
class Symptoms:
    """An artefact beside the checkpoint in fp32, on probes."""

    condition: Condition | None
    """The first request whose shifts are wrong; None where all are right or none can be seen."""
    shifts: Tensor
    """(n, p) that the artefact has for it."""
    shifts_are_known: bool
    """Whether the artefact's conditioner gives shifts; else it is judged with the denoiser."""
    rows: tuple[str, ...]
    """Rows of the bucket that hold another's result or nothing, in words."""
    probe: Probe
    """The one on which row 0 is the furthest off, given the right shifts."""
    got: tuple[Tensor, Tensor]
    """Noise and mask logits of row 0."""
    error: float
    """Of row 0, relative root mean square of the worse output; may be NaN."""


def find_symptoms(net: TaDiffNet, card: ModelCard, backend: Backend) -> Symptoms:
    """Asks an artefact for shifts and, with the shifts of the checkpoint, for outputs.

    All times are asked for at once, as in a forecast, noisiest first.
    """
    bucket = backend.batch
    probes = make_probes(card.schedule.build(), bucket, card.data.size)
    times = [probe.t for probe in reversed(probes)]
    condition, shifts, known = None, torch.empty(0), True
    for probe in reversed(probes):
        asked = condition_of(probe, times)
        got = backend.condition(np.array(times), probe.days, probe.treatments)
        truth = shifts_of(net, asked)
        if got.shape != tuple(truth.shape):
            known = False
            break
        if condition is None and not apart([torch.tensor(got)], [truth]) <= CONDITION_LIMIT:
            condition, shifts = asked, torch.tensor(got)
    found: list[str] = []
    evaluated = []
    for probe in probes:
        outputs, truth_outputs = _evaluate(net, backend, probe, known)
        found = found or _rows(outputs, truth_outputs)
        mine, right = ([o[:1] for o in side] for side in (outputs, truth_outputs))
        evaluated.append((apart(mine, right), probe, mine))
    # NaN first: nothing is worse.
    error, probe, mine = max(evaluated, key=lambda e: (np.isnan(e[0]), e[0]))
    return Symptoms(condition, shifts, known, tuple(found), probe, (mine[0], mine[1]), error)


def condition_of(probe: Probe, times: Sequence[float] = ()) -> Condition:
    """What the embeddings see of a probe, at its own time or at others."""
    return Condition(
        torch.tensor(times or [probe.t]).float(),
        torch.tensor([probe.days]),
        torch.tensor([probe.treatments]),
    )


def shifts_of(net: TaDiffNet, condition: Condition) -> Tensor:
    """(n, p) shifts of all blocks, one after the other, as the conditioner lays them out."""
    n = len(condition.t)
    target = torch.full((n,), condition.target)
    with torch.no_grad():
        around, middle = net.embed(
            condition.t, condition.days.expand(n, -1), condition.treatments.expand(n, -1), target
        )
        return torch.cat(net.project(around, middle), dim=1)


def unet(net: TaDiffNet, images: Images, shifts: Tensor) -> Result:
    """Both outputs in fp32, one row of images at a time."""
    widths = [block.channels_out for block in net.residual_blocks()]
    x = torch.cat([images.sources, images.x], dim=1)
    with torch.no_grad():
        y = torch.cat([net.unet(row, shifts.split(widths, dim=1)) for row in x.split(1)])
    return Result(y[:, -NUM_MODALITIES:], y[:, :NUM_SESSIONS])


def apart(got: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative root mean square error of the worst tensor; NaN stays."""
    each: list[float] = []
    for a, b in zip(got, exact, strict=True):
        scale = float(b.double().norm()) or 1.0
        each.append(float((a.double() - b.double()).norm()) / scale)
    return float(np.max(each))


def _evaluate(
    net: TaDiffNet, backend: Backend, probe: Probe, shifts_are_known: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Both outputs of a full bucket, of the artefact and of the checkpoint."""
    shifts = shifts_of(net, condition_of(probe))
    fed = shifts.numpy()
    if not shifts_are_known:
        fed = backend.condition(np.array([probe.t]), probe.days, probe.treatments)
    outputs = backend.denoise(probe.sources, probe.x, fed)
    truth = unet(net, Images(torch.tensor(probe.sources), torch.tensor(probe.x)), shifts)
    got = [torch.from_numpy(np.ascontiguousarray(output)) for output in outputs]
    return got, [truth.eps, truth.mask_logits]


def _rows(got: list[Tensor], truth: list[Tensor]) -> list[str]:
    found = []
    for k in range(len(got[0])):
        mine = [o[k : k + 1] for o in got]
        own = apart(mine, [o[k : k + 1] for o in truth])
        if any(not o.any() for o in mine) and own > CLEARLY:
            found.append(f"row {k} of the bucket is empty: one row dropped")
        found += [
            f"row {k} of the bucket holds row {j}: rows repeated or mixed up"
            for j in range(len(truth[0]))
            if j != k and apart(mine, [o[j : j + 1] for o in truth]) < CLEARLY * own
        ]
    return found
