"""What a run depends on, so that it is resumed with the same, and what else is to be known."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import UsageError
from tadiff_train.data.cache import CachedCase
from tadiff_train.fit.config import FREE, FitConfig
from tadiff_train.fit.processes import Processes
from tadiff_train.fit.run import write_json
from tadiff_train.network import NetworkConfig

RUN = "run.json"
Identity = dict[str, dict[str, Any]]
"""Group -> name -> JSON value."""
MOST_SHOWN = 6


def data_key(case: CachedCase) -> str:
    """SHA-256 of what a patient was trained on: the voxels, days, treatments and preparation.

    Of the images as they were read, by the digests in the cache's record, so that a cohort may be
    moved or copied; of a case made in memory, of its arrays.
    """
    what: list[object] = [case.days, case.treatments]
    if case.provenance is None:
        arrays = case.images.tobytes() + case.masks.tobytes()
        what.append(hashlib.sha256(arrays).hexdigest())
    else:
        kept = {"sessions", "contract", "shape", "slices", "tumour_voxels", "affine"}
        what.append(case.provenance.model_dump(mode="json", include=kept))
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


def identity_of(
    config: FitConfig,
    network: NetworkConfig,
    card: ModelCard,
    cases: Sequence[CachedCase],
    validation: Sequence[CachedCase],
) -> Identity:
    """Everything that must be the same when a run is resumed, as JSON reads it back."""
    identity = {
        "setting": {k: v for k, v in asdict(config).items() if k not in FREE},
        "network": network.model_dump(mode="json"),
        "card": card.model_dump(mode="json"),
        "patient": {f"{i} ({case.name})": data_key(case) for i, case in enumerate(cases)},
        "held-out patient": {case.name: data_key(case) for case in validation},
    }
    result: Identity = json.loads(json.dumps(identity))
    return result


def require_same(saved: Identity, now: Identity) -> None:
    """Refuses to resume a run with anything changed that its weights depend on.

    Raises:
        UsageError: TD3084, naming what differs.
    """
    found: list[str] = []
    for group, values in now.items():
        before = saved.get(group, {})
        found += [
            _difference(group, name, before, values)
            for name in dict.fromkeys([*before, *values])
            if before.get(name) != values.get(name)
        ]
    if found:
        shown = "; ".join(found[:MOST_SHOWN])
        more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise UsageError(
            "TD3084",
            f"the run was started with other settings or data: {shown}{more}",
            fix="give those of its run.json, or start a new run in another folder",
        )


def _difference(
    group: str, name: str, before: Mapping[str, Any], values: Mapping[str, Any]
) -> str:
    if name not in before:
        return f"{group} {name} is new"
    if name not in values:
        return f"{group} {name} is missing"
    if "patient" in group:
        return f"{group} {name} has other images, masks, days or treatments"
    return f"{group} {name} is {values[name]!r}, was {before[name]!r}"


def write_record(
    out: Path,
    identity: Identity,
    processes: Processes,
    about: Mapping[str, object],
    resumed_after: int | None,
) -> None:
    """Writes run.json; of a resumed run, adds where and how it goes on.

    Args:
        about: of the command: its line, the cohort's path, the split.

    Raises:
        ResourceError, OutputError: it cannot be written.
    """
    here = {"versions": _versions(), "hardware": _hardware(processes), **about}
    path = out / RUN
    if resumed_after is None:
        write_json(path, {**here, **identity, "resumed": []})
        return
    try:
        record = json.loads(path.read_bytes())
        record["resumed"].append({"after_step": resumed_after, **here})
    except (OSError, ValueError, KeyError, TypeError):  # lost, which is no reason not to go on
        record = {**identity, "resumed": [{"after_step": resumed_after, **here}]}
    write_json(path, record)


def patients_trained_on(folder: Path) -> tuple[str, ...]:
    """The training patients of a run, by its record; none where there is no record of them.

    Args:
        folder: a run folder or the `best` in it, or a file there.
    """
    for place in (folder, *list(folder.parents)[:2]):
        try:
            record = json.loads((place / RUN).read_bytes())
            # The later ones are of the same patients; the first may have been lost.
            parts = next(part for part in (record, *record["resumed"]) if "parts" in part)
            return tuple(parts["parts"]["train"])
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue
    return ()


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("tadiff", "torch", "numpy")}
    return {"python": platform.python_version(), **packages}


def _hardware(processes: Processes) -> dict[str, object]:
    is_cuda = processes.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(processes.device) if is_cuda else "cpu",
        "machine": f"{sys.platform} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
    }
