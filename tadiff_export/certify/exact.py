"""The checkpoint in PyTorch as a backend of the runtime, in float64 or as it is."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_export.certify.measure import Outputs
from tadiff_export.certify.probes import Probe
from tadiff_export.split import TARGET_SLOT
from tadiff_rt.batches import Progress
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet


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


class NetworkBackend:
    """The whole published forward, not the split one, as a backend of the runtime.

    So the loop that draws ensembles from artefacts draws the reference's. `condition` returns, in
    place of shifts, numbers of rows that `denoise` looks up. Not for several threads.
    """

    name = "reference"
    batch = 1
    partial = False

    def __init__(self, net: TaDiffNet, dtype: torch.dtype, progress: "Count") -> None:
        """
        Args:
            net: as loaded; a copy of it is converted for float64.
            dtype: torch.float64, or torch.float32 for the network as it is.
        """
        self.runtime = self.description = f"PyTorch {torch.__version__}, {dtype}"
        self.evaluations: list[tuple[NDArray[np.float32], Outputs]] = []
        """Every x and its outputs in full precision, in the order of the calls."""
        self._net = in_float64(net) if dtype == torch.float64 else net
        self._dtype = dtype
        self._progress = progress
        self._rows: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """(n, 1) numbers of rows; fp32 holds those below 2^24 exactly."""
        first = len(self._rows)
        condition = torch.tensor([days]).float(), torch.tensor([treatments]).float()
        self._rows += [(float(time), *condition) for time in t]
        return np.arange(first, len(self._rows), dtype=np.float32)[:, None]

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.denoise`; any number of rows."""
        outputs = self.evaluate(sources, x, int(shifts[0, 0]))
        self.evaluations.append((x.copy(), outputs))
        return outputs["eps"].astype(np.float32), outputs["mask_logits"].astype(np.float32)

    def evaluate(self, sources: NDArray[np.float32], x: NDArray[np.float32], row: int) -> Outputs:
        """Both outputs in float64, one row of images at a time to save memory."""
        t, days, treatments = self._rows[row]
        images = torch.from_numpy(np.concatenate([sources, x], axis=1))
        target = torch.full((1,), TARGET_SLOT)
        parts = []
        with torch.no_grad():
            for image in images.to(self._dtype).split(1):
                parts.append(self._net(image, torch.tensor([t]).float(), days, treatments, target))
                self._progress.add(1)
        y = torch.cat(parts).double().numpy()
        return {"eps": y[:, -NUM_MODALITIES:], "mask_logits": y[:, :NUM_SESSIONS]}

    def halve(self) -> bool:
        """There is nothing to halve."""
        return False

    def on_device(self) -> None:
        """Nothing of it is on a GPU."""


@dataclass(eq=False)
class Count:
    """Evaluations done, of a known total."""

    progress: Progress | None
    total: int
    done: int = 0

    def add(self, evaluations: int) -> None:
        """Tells the caller."""
        self.done += evaluations
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def exact_outputs(net: TaDiffNet, probe: Probe) -> Outputs:
    """What the checkpoint computes for a probe, in float64."""
    exact = NetworkBackend(net, torch.float64, Count(None, len(probe.x)))
    row = exact.condition(np.array([probe.t]), probe.days, probe.treatments)
    return exact.evaluate(probe.sources, probe.x, int(row[0, 0]))
