"""The folder of a run: claimed before hours are spent, and resumed where it was left.

    RUN/model.safetensors, model.json   the weights to export, as of the last save
    RUN/best/                           the same of the save with the least held-out loss
    RUN/state.safetensors               what --resume needs: all weights, moments and counters
    RUN/run.json                        settings, command, patients, versions and hardware
    RUN/curves.jsonl, tensorboard/      losses as they came
    RUN/pictures/                       sample forecasts

Every file is replaced whole or not at all. The state holds tensors and JSON, no pickles.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from tadiff_rt.atomic import atomic_file, clean_leftovers, output_error
from tadiff_rt.card import ModelCard
from tadiff_rt.errors import ModelFileError, OutputError
from tadiff_train.checkpoint import SIDECAR, save_checkpoint
from tadiff_train.network import TaDiffNet

STATE = "state.safetensors"
"""What training needs to go on, beside the checkpoint that export takes."""
BEST = "best"
RECORD = "record"
"""Key of the JSON part among the metadata of the state."""


def require_new_run(out: Path) -> None:
    """Makes the folder, or refuses one that holds a run: hours of training are not overwritten.

    Raises:
        OutputError: TD8001 there is a checkpoint, TD80xx the folder cannot be made.
    """
    if (out / SIDECAR).exists() or (out / STATE).exists():
        raise OutputError(
            "TD8001",
            "the folder holds a run already",
            where=str(out),
            fix="choose another folder, or go on with this run: --resume",
        )
    make_folder(out)


def make_folder(out: Path) -> None:
    """Makes a folder and those above it, where need be.

    Raises:
        ResourceError, OutputError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, out) from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps other processes from training into a folder; the system lets go of the dead.

    Raises:
        OutputError: TD8010, one is training into it.
        OutputError: it cannot be opened.
    """
    try:
        folder = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise output_error(error, out) from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                "TD8010",
                "another process is training into the folder",
                where=str(out),
                fix="wait until it ends, or choose another folder",
            ) from None
        except OSError:  # a file system without locks is no reason not to train
            pass
        yield
    finally:
        os.close(folder)


def require_state(out: Path) -> None:
    """Refuses a folder without a run to go on with.

    Raises:
        ModelFileError: TD4019, there is none.
    """
    if not (out / STATE).is_file():
        raise ModelFileError(
            "TD4019",
            f"there is no {STATE} to go on from",
            where=str(out),
            fix="start the run without --resume",
        )


def save_state(out: Path, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
    """Replaces the state of a run, whole or not at all.

    Args:
        record: what is no tensor; anything JSON holds.

    Raises:
        ResourceError: TD7002 the disk is full; the state that was there is untouched.
        OutputError: it cannot be written.
    """
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = safetensors.torch.save(whole, {RECORD: json.dumps(record)})
    with atomic_file(out / STATE) as file:
        file.write(data)


def load_state(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a run.

    Raises:
        ModelFileError: TD4019 there is none, TD4020 it cannot be read.
    """
    require_state(out)
    path = out / STATE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()[RECORD])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ModelFileError(
            "TD4020",
            f"{STATE} cannot be read: {type(error).__name__}",
            where=str(path),
            fix="start a new run; the checkpoint beside it may be whole and can be exported",
        ) from None


def write_checkpoint(
    folder: Path, net: TaDiffNet, card: ModelCard, training: Mapping[str, Any]
) -> None:
    """`save_checkpoint` with typed errors, nothing half-written left.

    Raises:
        ResourceError: TD7002 the disk is full.
        OutputError: it cannot be written.
    """
    make_folder(folder)
    try:
        save_checkpoint(folder, net, card, dict(training))
    except OSError as error:
        for part in folder.glob(f".*.{os.getpid()}.part"):
            part.unlink(missing_ok=True)
        raise output_error(error, folder / SIDECAR) from error


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file.

    Raises:
        ResourceError, OutputError: it cannot be written.
    """
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def remove_leftovers(out: Path) -> None:
    """What a process that was killed has left behind: this one alone writes to the folder."""
    clean_leftovers(out)
    for folder in (out, out / BEST):
        for part in folder.glob(".model.*.part"):
            part.unlink(missing_ok=True)
