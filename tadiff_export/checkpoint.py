"""Any TaDiff checkpoint -> the network, its card, and what was read into the file.

A run folder of `tadiff-train` states everything itself. Of other files the weights give the shape
of the network; heads, timesteps and schedule come from hyper-parameters, a card or flags, and are
never guessed: with wrong heads the network runs and is wrong.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tadiff_export.architecture import Inferred, infer
from tadiff_export.formats import as_float32, find_weights, source_of
from tadiff_export.hyperparameters import Stated, find_settings, same
from tadiff_export.tensors import read_contents
from tadiff_rt.card import ModelCard, ScheduleConfig
from tadiff_rt.errors import ModelFileError, TadiffError, UsageError, raise_findings
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint, network_of
from tadiff_train.network import NetworkConfig, TaDiffNet

NEEDED = {
    "num_heads": "--num-heads 4",
    "timesteps": "--timesteps 1000",
    "schedule": "--schedule linear",
}
"""What shapes cannot tell, and the flag that states the published value."""
LEGAL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
STATED_BY_CARD = ("data", "schedule", "x0_range")
"""Fields that a `--card` may not leave to defaults: forecasts depend on them."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line states of a checkpoint; None where it states nothing."""

    num_heads: int | None = None
    timesteps: int | None = None
    """T of training, not the number of solver steps."""
    schedule: str | None = None
    card: Path | None = None
    """A whole ModelCard as JSON."""
    name: str | None = None
    trained_on: str | None = None
    size: int | None = None
    """Edge of the network's window, in voxels."""
    spacing_mm: float | None = None


@dataclass(frozen=True)
class Loaded:
    """A checkpoint, read strictly."""

    net: TaDiffNet
    """In evaluation mode, float32."""
    config: NetworkConfig
    card: ModelCard
    weights_sha256: str
    """Of the weights file, or of the whole file where other things are in it."""
    source: str
    """The format, in words."""
    notes: tuple[str, ...]
    """What was chosen, converted, left out or taken as published."""


def load_any(path: Path, asked: Asked) -> Loaded:
    """The network of a run folder, or of a file of another program.

    Args:
        path: a run folder, the `model.safetensors` in it, or a .ckpt, .pt, .pth or .safetensors
            file that holds the published weights under any of the names of `formats`.
        asked: fills what the file leaves open; may not contradict it.

    Raises:
        ModelFileError: the file is damaged or hostile (`tensors.read_contents`), holds no single
            state dict (TD4007) or one of another network (TD4014), or weights that are not finite
            (TD4013); TD4015, heads, timesteps or schedule are unknown, contradict each other or
            the shape; TD4018, the card is not valid; TD4019, the schedule is not a linear one.
        UsageError: TD3038, a flag is out of range; TD3060, it contradicts the checkpoint.
    """
    _check(asked)
    card = None if asked.card is None else read_card(asked.card)
    # Not Path.is_dir, which raises for names that are too long for the file system.
    if isdir(path) or (path.name == WEIGHTS and isfile(path.parent / SIDECAR)):
        return _own(path, asked, card)
    try:
        return _foreign(path, asked, card)
    except ModelFileError as e:
        for finding in e.findings:
            finding.where = finding.where or str(path)
        raise


def read_card(path: Path) -> ModelCard:
    """A model card from JSON.

    Raises:
        ModelFileError: TD4018, it cannot be read, is not a card, or leaves out a field of
            `STATED_BY_CARD`.
    """
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except OSError as e:
        problem = f"it cannot be read: {e.strerror}"
    except ValidationError as e:
        first = e.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except UsageError as e:
        problem = f"schedule: {e.message}"
    else:
        left_out = [field for field in STATED_BY_CARD if field not in card.model_fields_set]
        if not left_out:
            return card
        problem = f"it leaves out {', '.join(left_out)}"
    raise ModelFileError("TD4018", f"{path.name} is no model card: {problem}", where=str(path))


def _check(asked: Asked) -> None:
    """UsageError TD3038 for values that no checkpoint has."""
    heads, steps, kind = asked.num_heads, asked.timesteps, asked.schedule
    name, size, spacing = asked.name, asked.size, asked.spacing_mm
    rules = (
        ("--num-heads", heads, heads is None or heads >= 1, "at least 1"),
        ("--timesteps", steps, steps is None or 1 <= steps <= 100_000, "1 to 100000"),
        ("--schedule", kind, kind in (None, "linear"), "'linear', the only one known"),
        ("--name", name, name is None or LEGAL_NAME.fullmatch(name), "of [A-Za-z0-9_.-]{1,64}"),
        ("--size", size, size is None or size >= 1, "at least 1 voxel"),
        ("--spacing", spacing, spacing is None or 0 < spacing < math.inf, "positive"),
    )
    raise_findings(
        [
            UsageError("TD3038", f"{option} must be {expected}, got {value!r}", where=option)
            for option, value, usable, expected in rules
            if not usable
        ]
    )


def _own(path: Path, asked: Asked, card: ModelCard | None) -> Loaded:
    """A run folder: everything is in its sidecar, and flags may only repeat it."""
    net, sidecar = load_checkpoint(path)
    stated = _stated_by(sidecar.card, SIDECAR)
    stated["num_heads"] = Stated(sidecar.network.num_heads, SIDECAR)
    findings = _contradictions([stated, _flags(asked)])
    for field in ModelCard.model_fields if card else ():
        known, other = getattr(sidecar.card, field), getattr(card, field)
        if known != other:
            findings.append(_contradiction(field, Stated(known, SIDECAR), Stated(other, "--card")))
    raise_findings(findings)
    source = "checkpoint of tadiff-train"
    return Loaded(net, sidecar.network, sidecar.card, sidecar.weights_sha256, source, ())


def _foreign(path: Path, asked: Asked, card: ModelCard | None) -> Loaded:
    """A file of another program: shapes, hyper-parameters and flags together state everything."""
    contents = read_contents(path)
    weights = find_weights(contents.root)
    inferred = infer({key: tuple(v.shape) for key, v in weights.state.items()})
    state, converted = as_float32(weights.state)
    settings, unread = find_settings(contents.root)
    _check_claims(inferred, settings)
    sources = [settings, {} if card is None else _stated_by(card, "--card"), _flags(asked)]
    known = _settle(sources)
    try:
        config = inferred.config(known["num_heads"].value)
    except ValidationError as e:
        what = f"{e.errors()[0]['msg']} ({known['num_heads'].where})"
        raise ModelFileError("TD4015", what, fix=NEEDED["num_heads"]) from None
    said = [f"{quantity} {known[quantity].value} ({known[quantity].where})" for quantity in NEEDED]
    assumed: tuple[str, ...] = ()
    if card is None:
        card, assumed = _card(path, known)
    return Loaded(
        network_of(config, state),
        config,
        card,
        contents.sha256,
        source_of(contents.format, contents.root, weights),
        (*contents.notes, *weights.notes, *converted, *unread, ", ".join(said), *assumed),
    )


def _check_claims(inferred: Inferred, settings: Mapping[str, Stated]) -> None:
    """ModelFileError TD4014 where hyper-parameters state another network than the weights are."""
    levels = {2**level for level in range(len(inferred.channel_mult))}
    for quantity in ("model_channels", "channel_mult", "num_res_blocks", "attention_strides"):
        if claim := settings.get(quantity):
            shown, value = getattr(inferred, quantity), claim.value
            if quantity == "attention_strides":  # strides that no level has change nothing
                value = tuple(sorted(levels.intersection(value)))
            if value != shown:
                what = f"{claim.where} is {claim.value}, the weights have {quantity} {shown}"
                raise ModelFileError("TD4014", what)


def _flags(asked: Asked) -> dict[str, Stated]:
    stated = {
        "num_heads": Stated(asked.num_heads, "--num-heads"),
        "timesteps": Stated(asked.timesteps, "--timesteps"),
        "schedule": Stated(asked.schedule, "--schedule"),
        "name": Stated(asked.name, "--name"),
        "trained_on": Stated(asked.trained_on, "--trained-on"),
        "size": Stated(asked.size, "--size"),
        "spacing_mm": Stated(asked.spacing_mm, "--spacing"),
    }
    return {quantity: flag for quantity, flag in stated.items() if flag.value is not None}


def _stated_by(card: ModelCard, where: str) -> dict[str, Stated]:
    values = {
        "timesteps": card.schedule.num_train_timesteps,
        "schedule": card.schedule.kind,
        "beta_start": card.schedule.beta_start,
        "beta_end": card.schedule.beta_end,
        "name": card.name,
        "trained_on": card.trained_on,
        "size": card.data.size,
        "spacing_mm": card.data.spacing_mm,
    }
    return {quantity: Stated(value, where) for quantity, value in values.items()}


def _settle(sources: Sequence[Mapping[str, Stated]]) -> dict[str, Stated]:
    """Every quantity from the first source that states it; all must agree, none of NEEDED lack."""
    known: dict[str, Stated] = {}
    for source in sources:
        known = {**source, **known}
    unknown: list[TadiffError] = [
        ModelFileError(
            "TD4015",
            f"{quantity} is not stated in the file, and the weights do not tell it",
            fix=f"state it as it was in training, such as {flag}",
        )
        for quantity, flag in NEEDED.items()
        if quantity not in known
    ]
    raise_findings([*_contradictions(sources), *unknown])
    return known


def _contradictions(sources: Sequence[Mapping[str, Stated]]) -> list[TadiffError]:
    found: list[TadiffError] = []
    known: dict[str, Stated] = {}
    for source in sources:
        for quantity, stated in source.items():
            first = known.setdefault(quantity, stated)
            if not same(first.value, stated.value):
                found.append(_contradiction(quantity, first, stated))
    return found


def _contradiction(quantity: str, a: Stated, b: Stated) -> UsageError:
    return UsageError(
        "TD3060",
        f"{quantity}: {a.where} says {a.value}, {b.where} says {b.value}",
        where=b.where,
        fix=f"leave out {b.where}, or give the checkpoint that it is meant for",
    )


def _card(path: Path, known: Mapping[str, Stated]) -> tuple[ModelCard, tuple[str, ...]]:
    """A card from what is known and, said in notes, from what was published.

    Estimates of x0 are not clipped: the published sampler does not, and of a stranger's data the
    range is unknown.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).strip("._-")[:64] or "model"
    published = _stated_by(ModelCard(name=name, trained_on="not stated"), "as published")
    values: dict[str, Any] = {q: stated.value for q, stated in {**published, **known}.items()}
    try:
        schedule = ScheduleConfig(
            num_train_timesteps=values["timesteps"],
            beta_start=values["beta_start"],
            beta_end=values["beta_end"],
        )
        schedule.build()
    except (ValidationError, UsageError) as e:
        problem = e.message if isinstance(e, UsageError) else e.errors()[0]["msg"]
        raise ModelFileError("TD4019", f"the file states no usable schedule: {problem}") from None
    card = ModelCard(
        name=values["name"],
        trained_on=values["trained_on"],
        data=DataContract(size=values["size"], spacing_mm=values["spacing_mm"]),
        schedule=schedule,
        x0_range=None,
    )
    taken = [q for q in ("beta_start", "beta_end", "size", "spacing_mm") if q not in known]
    said = ", ".join(f"{q} {values[q]:g}" for q in taken)
    return card, ((f"as published, for the file does not say: {said}",) if taken else ())
