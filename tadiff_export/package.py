"""A checkpoint in, an engine bundle out: read, make and certify in memory, then write."""

from collections.abc import Callable
from pathlib import Path

from tadiff_export.certify.reference import Settings
from tadiff_export.checkpoint import Asked, load_any
from tadiff_export.wanted import Wanted
from tadiff_export.workshop import Stage, Workshop
from tadiff_rt.bundle import describe_artefacts
from tadiff_rt.console import progress_bar
from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.manifest import Manifest
from tadiff_rt.write import ResultFolder, write_bytes
from tadiff_train.checkpoint import WEIGHTS

SUFFIX = ".tadiff"


def bundle_path(checkpoint: Path, out: Path | None) -> Path:
    """Where the bundle goes: `out`, or the checkpoint's name beside it; ends in .tadiff."""
    if out is None:
        named = checkpoint.parent if checkpoint.name == WEIGHTS else checkpoint
        return named.with_name((named.name if named.is_dir() else named.stem) + SUFFIX)
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
