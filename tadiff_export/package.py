"""A checkpoint in, an engine bundle out: read, make and certify in memory, then write."""

import os
from collections.abc import Callable
from pathlib import Path

from tadiff_export.certify.reference import Settings
from tadiff_export.checkpoint import Asked, load_any
from tadiff_export.judge import Stage
from tadiff_export.wanted import Wanted
from tadiff_export.workshop import Workshop
from tadiff_rt.bundle import describe_artefacts
from tadiff_rt.console import progress_bar
from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.manifest import Manifest
from tadiff_rt.write import ResultFolder, write_bytes
from tadiff_train.checkpoint import SIDECAR, WEIGHTS

SUFFIX = ".tadiff"


def bundle_path(checkpoint: Path, out: Path | None) -> Path:
    """Where the bundle goes: `out`, or the checkpoint's name beside it; ends in .tadiff."""
    if out is None:
        path = Path(os.path.abspath(checkpoint))  # "." has no name
        own = path.name == WEIGHTS and os.path.isfile(path.parent / SIDECAR)
        named = path.parent if own else path
        return named.with_name((named.name if os.path.isdir(named) else named.stem) + SUFFIX)
    if out.suffix != SUFFIX:
        raise UsageError(
            "TD3051", f"a bundle is a folder NAME{SUFFIX}, got {out}", fix=f"-o {out.name}{SUFFIX}"
        )
    return out


def export(
    checkpoint: Path,
    out: Path,
    *,
    asked: Asked = Asked(),
    wanted: Wanted = Wanted(),
    settings: Settings = Settings(),
    overwrite: bool = False,
    stage: Stage = lambda title: progress_bar(title, quiet=True),
    say: Callable[[str], None] = lambda message: None,
) -> Manifest:
    """Reads any TaDiff checkpoint, writes the bundle `out`, and proves what is in it.

    The bundle appears whole or not at all; an existing one stays until the new one is proven.

    Args:
        asked: what the checkpoint does not state.
        wanted: artefacts of the bundle.
        settings: how much the certificates measure.
        stage: called at the beginning of each stage; gives its progress.
        say: receives remarks, a line each.

    Raises:
        ModelFileError: the checkpoint cannot be used.
        UsageError: the request contradicts it or itself.
        NumericsError: no denoiser computes the checkpoint (TD6010).
        EngineError: an engine could not be built.
        OutputError, ResourceError: the bundle cannot be written.
    """
    wanted.check()
    loaded = load_any(checkpoint, asked)
    for note in (f"read: {loaded.source}", *loaded.notes):
        say(note)
    size, stride = loaded.card.data.size, loaded.config.stride
    if size % stride:
        raise UsageError("TD3052", f"image size {size} is not a multiple of {stride}")
    with ResultFolder(out, overwrite=overwrite, inputs=[checkpoint]) as folder:
        draft = Workshop(loaded, wanted, settings, stage, say).make()
        manifest = draft.manifest
        if not manifest.denoisers:
            reasons = "; ".join(r.reason for r in manifest.rejected)
            raise NumericsError("TD6010", f"no artefact passed its certificate: {reasons}")
        if all(a.precision != "fp32" for a in manifest.denoisers):
            say("no artefact is in fp32: a CPU runs it slowly, and bf16 only with openvino")
        folder.require_space(sum(map(len, draft.files.values())))
        for name, data in draft.files.items():
            write_bytes(folder.path / name, data)
        folder.complete(manifest.model_dump(mode="json"))
    return manifest


def summary(manifest: Manifest, out: Path) -> str:
    """The table of artefacts and the next command to type."""
    next_command = (
        f"tadiff-rt predict --engine {out} --case sub-XX --day +90 --treatment TMZ -o forecast"
    )
    return "\n".join([*describe_artefacts(manifest), f"written to {out}; next:", next_command])
