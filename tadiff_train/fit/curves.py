"""What a run shows of itself: curves.jsonl, TensorBoard, and sample pictures."""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.atomic import atomic_file, output_error
from tadiff_rt.console import say

CURVES = "curves.jsonl"
TENSORBOARD = "tensorboard"
PICTURES = "pictures"


class Curves:
    """One line of JSON every few steps, and the same numbers in TensorBoard where it is there.

    Keys of a line: "step", smoothed training terms, "learning_rate", "gradient_norm" before
    clipping, "seconds" of training so far, "windows_per_second" since the line before, and, where
    held-out patients were looked at, their terms with "val_" before.
    """

    def __init__(self, out: Path, last_step: int, *, quiet: bool = False) -> None:
        """Opens the curves; lines after `last_step`, of a run that was killed, are cut off.

        Raises:
            ResourceError, OutputError: they cannot be written.
        """
        self.out = out
        cut_back(out / CURVES, last_step)
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            if not quiet:
                say("curves go to curves.jsonl alone; for TensorBoard: pip install tensorboard")
            return
        from torch.utils.tensorboard import SummaryWriter

        with self._writing():
            # Of a first step too: a run that died before its first save has left events here.
            self._writer = SummaryWriter(str(out / TENSORBOARD), purge_step=last_step + 1)

    def close(self) -> None:
        """Ends what writes to TensorBoard."""
        if self._writer is not None:
            with suppress(OSError):  # every line was flushed, or its error was raised
                self._writer.close()

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line; what is not finite becomes null.

        Raises:
            ResourceError, OutputError: it cannot be written.
        """
        path = self.out / CURVES
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            with open(path, "a", encoding="ascii") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
        except OSError as error:
            raise output_error(error, path) from error
        if self._writer is not None:
            with self._writing():
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
                self._writer.flush()

    def picture(self, step: int, png: bytes, pixels: NDArray[np.uint8]) -> None:
        """Adds a picture, as PNG and as (h, w, 3) pixels.

        Raises:
            ResourceError, OutputError: it cannot be written.
        """
        path = self.out / PICTURES / f"step-{step:07d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise output_error(error, path.parent) from error
        with atomic_file(path) as file:
            file.write(png)
        if self._writer is not None:
            with self._writing():
                self._writer.add_image("sample", pixels, step, dataformats="HWC")
                self._writer.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What TensorBoard's files run into, as typed errors."""
        try:
            yield
        except OSError as error:
            raise output_error(error, self.out / TENSORBOARD) from error


def cut_back(path: Path, last_step: int) -> None:
    """Keeps the whole lines up to a step.

    Raises:
        ResourceError, OutputError: the file cannot be replaced.
    """
    if not path.is_file():
        return
    kept = [
        line
        for line in path.read_text("ascii", "replace").splitlines()
        if _step_of(line) <= last_step
    ]
    with atomic_file(path) as file:
        file.write("".join(line + "\n" for line in kept).encode())


def _step_of(line: str) -> float:
    """Infinity for a line that a killed process has not finished."""
    try:
        step: float = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step
