"""Where a checkpoint of another program keeps its weights, and how they become float32.

Works on the plain values of `tensors.read_contents`, never on bytes. What is done to names and
numbers is said in notes; what cannot be told is refused. The rest is read by `hyperparameters`.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tadiff_export.architecture import listed
from tadiff_export.tensors import Inert, as_mapping
from tadiff_rt.errors import ModelFileError

ROOTS = {"time_embed", "days_embed", "treats_embed", "input_blocks", "middle_block"}
ROOTS |= {"output_blocks", "out"}
"""First words of the network's own names."""
WRAPPERS = {"_model", "model", "module", "net", "ema_model", "online_model", "_orig_mod"}
"""Words put before them by Lightning modules, DataParallel, ema_pytorch and torch.compile; words
of averages (`is_average`) may stand there as well."""
BOOKKEEPING = {"n_averaged", "num_updates", "decay", "initted", "step"}
"""Single numbers that averaging classes keep among the weights."""
MAX_DEPTH = 8
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Place = tuple[str, ...]
Found = tuple[Place, Mapping[Any, Any]]


@dataclass(frozen=True)
class Weights:
    """A state dict under the network's own names; dtypes and values are as stored."""

    state: dict[str, Tensor]
    place: Place
    """Names that lead to it in the file."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Tensors of one mapping under one prefix."""

    place: Place
    prefix: str
    averaged: bool
    own: dict[str, Tensor]
    strays: dict[str, Tensor]
    """Tensors of the mapping that have another prefix and no name of the network."""
    counters: tuple[str, ...]
    """Names left out: numbers that say how the average was made."""

    def __str__(self) -> str:
        return place_name(self.place) + (f", names with {self.prefix}" if self.prefix else "")


def find_weights(root: object) -> Weights:
    """The one state dict in `root`; the averaged one where there are raw and averaged weights.

    Raises:
        ModelFileError: TD4007, there is none, or several of a kind.
    """
    everything = list(mappings(root, lambda name: True))
    # Lightning's WeightAveraging puts the average where the raw weights are otherwise.
    swapped = {(*place, "state_dict") for place, found in everything if "averaging_state" in found}
    groups = [g for place, found in everything for g in _groups(place, found, place in swapped)]
    groups = groups or _unknown_names(everything)
    candidates = [group for group in groups if group.averaged] or groups
    if not candidates:
        raise _no_state_dict(root, everything)
    if len(candidates) > 1:
        names = listed([str(group) for group in candidates])
        what = f"{len(candidates)} state dicts, and no telling which is meant: {names}"
        raise ModelFileError("TD4007", what, fix="save the one that is meant in a file of its own")
    chosen = candidates[0]
    return Weights({**chosen.own, **chosen.strays}, chosen.place, _notes(chosen, groups))


def source_of(container: str, root: object, weights: Weights) -> str:
    """The format in words: what wrote the file, as far as it tells."""
    if container == "safetensors":
        return "safetensors file"
    version = dict(as_mapping(root) or {}).get("pytorch-lightning_version")
    if isinstance(version, str):
        return f"PyTorch Lightning {version[:20]} checkpoint"
    if weights.place:
        return f"training checkpoint, {place_name(weights.place)}"
    return "bare state dict"


def as_float32(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """float32 weights, and what the conversion did; no tensor may be empty.

    Raises:
        ModelFileError: TD4014, a tensor holds no floating-point numbers; TD4013, a weight is not
            finite, or is too large for float32.
    """
    if wrong := [f"{k} ({v.dtype})" for k, v in state.items() if v.dtype not in FLOATING]:
        what = f"not floating-point weights in {len(wrong)} tensors: {listed(wrong)}"
        raise ModelFileError("TD4014", what)
    out = {k: v.detach().to(torch.float32).contiguous() for k, v in state.items()}
    if broken := [k for k, v in out.items() if not v.isfinite().all()]:
        what = f"NaN or infinite weights in {len(broken)} of {len(out)} tensors: {listed(broken)}"
        raise ModelFileError("TD4013", what, fix="take a checkpoint from before training broke")
    notes = []
    for dtype, n in Counter(v.dtype for v in state.values() if v.dtype != torch.float32).items():
        done, effect = "converted", "no value"
        if dtype == torch.float64:
            wide = {k: v for k, v in state.items() if v.dtype == dtype}
            change, key = max((float((v - out[k]).abs().max()), k) for k, v in wide.items())
            done, effect = "rounded", f"a weight by {change:.1e} at most ({key})"
        said = f"{dtype} {done} to float32 in {n} of {len(out)} tensors, which changes {effect}"
        notes.append(said.removeprefix("torch."))
    tiny = torch.finfo(torch.float32).tiny
    if denormal := sum(int(((v != 0) & (v.abs() < tiny)).sum()) for v in out.values()):
        notes.append(f"denormal weights (below {tiny:.1e}), which GPUs may take as 0: {denormal}")
    return out, tuple(notes)


def mappings(root: object, enter: Callable[[str], bool]) -> Iterator[Found]:
    """Every mapping in `root` reached by names that `enter` accepts, outermost first.

    Each comes once: values of a pickle may share parts.
    """
    queue: deque[tuple[Place, object]] = deque([((), root)])
    seen: dict[int, object] = {}
    while queue:
        place, value = queue.popleft()
        found = as_mapping(value)
        if found is None or id(value) in seen:
            continue
        seen[id(value)] = value  # kept alive, so that its id stays its own
        yield place, found
        if len(place) < MAX_DEPTH:
            inner = ((k, v) for k, v in found.items() if isinstance(k, str) and enter(k))
            queue.extend(((*place, k), v) for k, v in inner)


def is_average(word: str) -> bool:
    """Whether such a name stands for averaged weights, as ema_state_dict and shadow do."""
    return not {"ema", "shadow", "averaged"}.isdisjoint(word.split("_"))


def split_prefix(name: str) -> tuple[str, str]:
    """(known words before the network's own name, each with its dot; that name)."""
    rest = name
    for _ in range(MAX_DEPTH):
        word, dot, after = rest.partition(".")
        if not dot or not (word in WRAPPERS or is_average(word)):
            break
        rest = after
    return name[: len(name) - len(rest)], rest


def place_name(place: Place) -> str:
    """`place` in words."""
    return listed([".".join(place)]) if place else "the top of the file"


def kind(value: object) -> str:
    """What a value is, in a word."""
    if isinstance(value, Inert):
        return value.name
    return "tensor" if isinstance(value, Tensor) else type(value).__name__


def _groups(place: Place, found: Mapping[Any, Any], swapped: bool) -> list[Group]:
    """The state dicts of this network among the entries of one mapping, by prefix."""
    split = {k: split_prefix(k) if isinstance(k, str) else ("", "") for k in found}
    own: dict[str, dict[str, Tensor]] = {
        split[k][0]: {} for k, v in found.items() if isinstance(v, Tensor) and _is_own(split[k][1])
    }
    if not own:
        return []
    strays: dict[str, Tensor] = {}
    counters, no_tensors = [], []
    for key, value in found.items():
        prefix, name = split[key]
        if name in BOOKKEEPING and _is_number(value):
            counters.append(key)
        elif not (isinstance(key, str) and isinstance(value, Tensor)):
            no_tensors.append(_entry(key, value))
        elif prefix in own:
            own[prefix][name] = value
        else:
            strays[key] = value
    if no_tensors:
        share = f"{len(no_tensors)} of its {len(found)} entries are no tensors"
        what = f"{place_name(place)} is no state dict: {share}: {listed(no_tensors)}"
        fix = "save net.state_dict() alone, or under a key of its own"
        raise ModelFileError("TD4007", what, fix=fix)
    groups = []
    for prefix, state in own.items():
        wrapper = prefix.removesuffix("module.")
        averaged = swapped or any(map(is_average, (*place, *prefix.split("."))))
        averaged |= wrapper != prefix and f"{wrapper}n_averaged" in found  # torch's AveragedModel
        groups.append(Group(place, prefix, averaged, state, strays, tuple(counters)))
    return groups


def _is_own(name: str) -> bool:
    root, dot, _ = name.partition(".")
    return bool(dot) and root in ROOTS


def _is_number(value: object) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)


def _entry(key: object, value: object) -> str:
    """A mapping's entry in words; keys that are numbers may have a million digits."""
    return f"{key if isinstance(key, str) else kind(key)} ({kind(value)})"


def _unknown_names(everything: list[Found]) -> list[Group]:
    """A state dict of other names, so that it can be refused by them."""
    for place, found in everything:
        meant = not place or "state_dict" in place[-1] or place[-1] in WRAPPERS
        tensors = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
        if found and meant and tensors:
            return [Group(place, "", False, dict(found), {}, ())]
    return []


def _no_state_dict(root: object, everything: list[Found]) -> ModelFileError:
    holds = f"a {kind(root)}"
    if everything:
        holds += f" of {listed([_entry(k, v) for k, v in everything[0][1].items()]) or 'nothing'}"
    whole_module = any("_modules" in found for _, found in everything)
    what = "a pickled module, not its state dict" if whole_module else "no state dict of TaDiff"
    fix = "save net.state_dict() with torch.save, or give a Lightning checkpoint"
    return ModelFileError("TD4007", f"the file holds {what}; found {holds}", fix=fix)


def _notes(chosen: Group, groups: list[Group]) -> tuple[str, ...]:
    notes = []
    if chosen.averaged:
        raw = listed([str(group) for group in groups if group is not chosen])
        instead = f", not the raw ones of {raw}" if raw else ""
        notes.append(f"averaged (EMA) weights are used: {chosen}{instead}")
    if chosen.prefix:
        notes.append(f"prefix {chosen.prefix} stripped from the names of the weights")
    if chosen.counters:
        notes.append(f"left out, no weights: {listed(list(chosen.counters))}")
    return tuple(notes)
