"""Kernels compiled ahead of time, without a GPU: what the compiler makes of them on each.

Compiling needs a process in which Triton's interpreter is off; so it runs in a fresh one.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)
"""A100, H100, B200."""

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes that one program may have of a multiprocessor's shared memory (CUDA C++ Programming Guide,
compute capabilities)."""

RECORD = "TADIFF_RECORD"
"""Environment variable: 1 writes the table that `check_against` compares with."""

FLOAT64 = re.compile(r"\.f64\b")


@dataclass(frozen=True)
class Variant:
    """A kernel with its types and constants, as one launch would compile it."""

    kernel: str
    """module:function."""
    name: str
    """Of the variant among those of its kernel."""
    signature: dict[str, str]
    """Triton types of all arguments in order: "*fp16", "i32", "constexpr"."""
    constants: dict[str, Any]
    aligned: tuple[int, ...] = ()
    """Positions of the arguments that are multiples of 16: pointers and sizes."""
    num_warps: int = 4
    num_stages: int = 3
    enable_fp_fusion: bool = True
    skipped: tuple[str, ...] = field(default=())
    """Arguments that are None in this variant; their type in `signature` is "constexpr"."""


@dataclass(frozen=True)
class Resources:
    """What one variant needs on one architecture."""

    variant: str
    arch: int
    registers: int
    """A thread."""
    spilled: int
    """Bytes of stack and local memory a thread."""
    shared: int
    """Bytes a program."""
    ptx: str


def compile_variants(
    variants: Sequence[Variant], archs: Sequence[int] = ARCHITECTURES
) -> list[Resources]:
    """Compiles every variant for every architecture: about a second each.

    Raises:
        RuntimeError: the compiler refuses one; with what it said.
    """
    asked = json.dumps({"variants": [asdict(v) for v in variants], "archs": list(archs)})
    env = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_DEFAULT_FP_FUSION": "1",  # the default, which Triton 3.9 warns about unless said
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tadiff_kernels.ahead"],
        input=asked,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"kernels could not be compiled: {done.stderr[-3000:]}")
    return [Resources(**entry) for entry in json.loads(done.stdout)]


def check_against(table: Path, resources: Sequence[Resources]) -> None:
    """Compares with what was recorded, or records it where `TADIFF_RECORD=1`.

    Another Triton allocates otherwise: with one that the table was not recorded with, a kernel
    only has to fit the GPU.

    Raises:
        AssertionError: a kernel spills, computes in float64, or needs more registers or shared
            memory than recorded; or the table lacks it.
    """
    for found in resources:
        where = f"{found.variant} on sm_{found.arch}"
        assert not found.spilled, f"{where} spills {found.spilled} bytes a thread"
        assert not FLOAT64.search(found.ptx), f"{where} computes in float64"
        assert found.shared <= SHARED[found.arch], f"{where} needs {found.shared} bytes shared"
    needs = {f"{r.variant} sm_{r.arch}": [r.registers, r.shared] for r in resources}
    if os.environ.get(RECORD) == "1":
        table.parent.mkdir(exist_ok=True)
        entries = {"triton": version("triton"), **dict(sorted(needs.items()))}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
        table.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    recorded = json.loads(table.read_text())
    by = recorded.pop("triton")
    assert needs.keys() == recorded.keys(), f"{table.name} lists other variants"
    if by != version("triton"):
        return
    for key, (registers, shared) in needs.items():
        most = recorded[key]
        assert registers <= most[0], f"{key} needs {registers} registers, recorded {most[0]}"
        assert shared <= most[1], f"{key} needs {shared} bytes shared, recorded {most[1]}"


def _main() -> None:
    """Compiles what stdin asks for; the child process of `compile_variants`."""
    asked = json.load(sys.stdin)
    built = [_compile(v, arch) for v in asked["variants"] for arch in asked["archs"]]
    json.dump(built, sys.stdout)


def _compile(variant: dict[str, Any], arch: int) -> dict[str, Any]:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = variant["kernel"].partition(":")
    constants = {**variant["constants"], **dict.fromkeys(variant["skipped"])}
    source = ASTSource(
        getattr(importlib.import_module(module), name),
        variant["signature"],
        constants,
        {(at,): [["tt.divisibility", 16]] for at in variant["aligned"]},
    )
    options = {key: variant[key] for key in ("num_warps", "num_stages", "enable_fp_fusion")}
    try:
        built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as e:
        raise RuntimeError(f"{variant['kernel']} {variant['name']} for sm_{arch}: {e}") from e
    registers, spilled = _usage(built.asm["cubin"], built.metadata.name)
    return {
        "variant": f"{name} {variant['name']}",
        "arch": arch,
        "registers": registers,
        "spilled": spilled,
        "shared": built.metadata.shared,
        "ptx": built.asm["ptx"],
    }


def _usage(cubin: bytes, kernel: str) -> tuple[int, int]:
    """Registers a thread, and bytes of stack and local memory, as cuobjdump finds them."""
    import tempfile

    import triton

    inspector = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [inspector, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]


if __name__ == "__main__":
    _main()
