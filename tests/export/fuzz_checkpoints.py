"""Mutated checkpoint files against the reader: nothing may run, and every outcome has a type.

    python tests/export/fuzz_checkpoints.py [COUNT] [SEED]

Case i of a seed is always the same file. Counts outcomes by code, and exits with 1 if anything
was executed, imported or opened, or if anything but a ModelFileError escaped.
"""

import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import safetensors.torch
import torch

from tadiff_export.opcodes import OPCODES, scan
from tadiff_export.tensors import parse
from tadiff_rt.errors import ModelFileError
from tests.export.crafted import Call, Member, lightning, members, pack, payload, saved, whole

HARMLESS = {"array.__new__", "builtins.id", "object.__getattr__", "sys._getframe"}
"""Audit events that the reader may raise: none of them runs, imports or opens anything."""
SHOWN = 5


@dataclass
class Seed:
    """An honest file, or one that would run a command, taken apart."""

    data: bytes
    entries: dict[str, bytes] = field(default_factory=dict)
    """Of the zip; empty for safetensors."""
    places: list[int] = field(default_factory=list)
    """Where the opcodes of the pickle begin, and its end."""

    @property
    def pickle(self) -> bytes:
        return next(raw for name, raw in self.entries.items() if name.endswith("/data.pkl"))


def seeds(canary: Path) -> list[Seed]:
    """Small files of every kind that is read; half of the pickles hold a live payload."""
    rng = torch.Generator().manual_seed(1)
    w = torch.randn(4, 3, generator=rng)
    tied = {"w": w, "t": w.T, "h": w.half(), "b": w.bfloat16(), "k": torch.arange(5), "e": w[:0]}
    run = payload(canary)
    evaluate = Call(eval, f"open({str(canary)!r}, 'w')")
    values = [
        saved({"state_dict": tied, "x": run}),
        saved({"state_dict": tied, "x": [evaluate, {1, 2.5}, b"raw", 10**30]}, 4),
        saved([{"p": torch.nn.Parameter(w), "s": w.shape, "m": w > 0}, run, run], 3),
        lightning({"_model.a": w, "_model.b": w[1]}),
        lightning({"_model.a": w}, 5, callbacks={"c": run}),
        saved(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))),
    ]
    found = [Seed(data, members(data)) for data in values]
    for seed in found:
        seed.places = [*scan(seed.pickle, 0, len(seed.pickle), "seed"), len(seed.pickle)]
    tensors = {"a": w, "b.c": w.half(), "z": torch.zeros(0, 3), "m": w.bfloat16()}
    return [*found, Seed(safetensors.torch.save(tensors, {"format": "pt"}))]


NUMBERS = [0, 1, 2, 3, 7, 8, 24, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]


def mutant(case: int, seed: int, all_seeds: list[Seed]) -> bytes:
    """Case `case` of the fuzzer's `seed`."""
    rng = random.Random(seed * 1_000_003 + case)
    base = rng.choice(all_seeds)
    if not base.entries:
        return rng.choice([_header_bytes, _header_words, _bytes_anywhere, _cut])(rng, base.data)
    if rng.random() < 0.75:
        shape = partial(_same_effect, base, all_seeds)
        splice = partial(_splice, base, all_seeds)
        change = rng.choice([_bytes_anywhere, splice, shape, shape, _numbers])
        return _rezipped(base, change(rng, base.pickle), rng)
    return rng.choice([_bytes_anywhere, _zip_fields, _cut])(rng, base.data)


def _bytes_anywhere(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(out))
        kind = rng.randrange(4)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice([1, 2, 4]))
        else:
            del out[at : at + rng.choice([1, 2, 4])]
    return bytes(out)


def _splice(base: Seed, all_seeds: list[Seed], rng: random.Random, pickle: bytes) -> bytes:
    """Some opcodes of another file in place of some of this one."""
    other = rng.choice([seed for seed in all_seeds if seed.entries])
    i, k = rng.randrange(len(base.places)), rng.randrange(len(other.places))
    before, after = pickle[: base.places[i]], pickle[base.places[i:][:6][-1] :]
    return before + other.pickle[other.places[k] : other.places[k:][:20][-1]] + after


def _same_effect(base: Seed, all_seeds: list[Seed], rng: random.Random, pickle: bytes) -> bytes:
    """Opcodes in place of some with the same effect on the stack, which `scan` lets pass."""
    pieces = [pickle[i:j] for i, j in pairwise(base.places)]
    other = rng.choice([seed for seed in all_seeds if seed.entries])
    theirs = [other.pickle[i:j] for i, j in pairwise(other.places)]
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(1, len(pieces))
        like = [piece for piece in theirs if _effect(piece) == _effect(pieces[at])]
        pieces[at] = rng.choice(like or [pieces[at]])
    return b"".join(pieces)


def _effect(piece: bytes) -> tuple[int, int, bool]:
    opcode = OPCODES[piece[0]]
    return opcode.pops, opcode.pushes, opcode.mark


def _numbers(rng: random.Random, pickle: bytes) -> bytes:
    """Another number in place of a small one: sizes, strides, offsets, lengths, memo places."""
    at = [i for i in range(len(pickle) - 1) if pickle[i] == b"K"[0]]
    if not at:
        return pickle
    i = rng.choice(at)
    number = rng.choice([*NUMBERS, -1, -5, 2**40, 2**63, 2**64, 2**500])
    return pickle[:i] + whole(number) + pickle[i + 2 :]


def _rezipped(base: Seed, pickle: bytes, rng: random.Random) -> bytes:
    """A sound zip around the changed pickle, so that the machine gets to see it."""
    entries = [
        Member(name, pickle if name.endswith("/data.pkl") else raw)
        for name, raw in base.entries.items()
    ]
    if rng.random() < 0.02:
        entries.remove(rng.choice(entries))
    return pack(entries)


def _zip_fields(rng: random.Random, data: bytes) -> bytes:
    """Other numbers in the headers of a zip."""
    out = bytearray(data)
    heads = [i for i in range(len(data) - 4) if data[i : i + 2] == b"PK" and data[i + 2] < 9]
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice(heads) + rng.randrange(46)
        form = rng.choice(["<B", "<H", "<L"])
        number = rng.choice([*NUMBERS, at, len(data)]) % 256 ** struct.calcsize(form)
        if at + struct.calcsize(form) <= len(out):
            struct.pack_into(form, out, at, number)
    return bytes(out)


def _header_bytes(rng: random.Random, data: bytes) -> bytes:
    """A changed header of a safetensors file, mostly with the right length before it."""
    length = int.from_bytes(data[:8], "little")
    header = _bytes_anywhere(rng, data[8 : 8 + length])
    told = rng.choice([*NUMBERS, 2**63]) if rng.random() < 0.1 else len(header)
    return told.to_bytes(8, "little") + header + data[8 + length :]


WORDS = [b"0", b"1", b"-1", b"1e3", b"9" * 5000, b"F32", b"F64", b"BOOL", b"[", b"]", b"{", b"}"]
WORDS += [b"[" * 3000, b'"a":', b'"b.c":', b'"dtype":', b"null", b"true", b"NaN", b"\\ud800", b","]


def _header_words(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    at = rng.randrange(len(header))
    stop = at + rng.choice([0, 0, 1, 2, 3])
    header = header[:at] + rng.choice(WORDS) + header[stop:]
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


@dataclass
class Result:
    """What became of all cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    executed: list[str] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    slowest_ms: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.executed and not self.untyped


_heard: list[str] = []
_listening = False


def _listen(event: str, args: tuple[object, ...]) -> None:
    if _listening and event not in HARMLESS:
        _heard.append(f"{event} {str(args)[:100]}")


def fuzz(
    count: int, seed: int, canary: Path, say: Callable[[str], None] = lambda s: None
) -> Result:
    """Parses `count` mutants."""
    global _listening
    all_seeds = seeds(canary)
    for base in all_seeds:  # whatever a first call imports
        parse(base.data, "seed")
    "\n".encode("unicode_escape")
    if not getattr(fuzz, "hooked", False):  # a hook cannot be removed
        sys.addaudithook(_listen)
        fuzz.hooked = True
    result = Result()
    for case in range(count):
        data = mutant(case, seed, all_seeds)
        start = time.process_time()
        _heard.clear()
        _listening = True
        try:
            parse(data, "mutant")
            outcome = "read"
        except ModelFileError as error:
            outcome = error.code
        except BaseException as error:
            outcome = type(error).__name__
            result.untyped.append(f"case {case}: {''.join(traceback.format_exception(error))}")
        finally:
            _listening = False
        result.slowest_ms = max(result.slowest_ms, 1e3 * (time.process_time() - start))
        result.outcomes[outcome] += 1
        if _heard or canary.exists():
            result.executed.append(f"case {case}: {_heard[:SHOWN]}")
            canary.unlink(missing_ok=True)
        if case % 10_000 == 9_999:
            say(f"{case + 1} of {count}")
    return result


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        write = partial(print, file=sys.stderr)
        result = fuzz(count, seed, Path(folder) / "canary", write)
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    lines = [f"{code:10} {n:8}" for code, n in sorted(result.outcomes.items())]
    lines += [*result.untyped[:SHOWN], *result.executed[:SHOWN]]
    lines.append(
        f"{count} files of seed {seed} in {time.perf_counter() - start:.0f} s: "
        f"{len(result.executed)} executed, {len(result.untyped)} untyped, "
        f"slowest {result.slowest_ms:.0f} ms, {peak_mb:.0f} MB more at the peak"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(not result.clean)


if __name__ == "__main__":
    main()
