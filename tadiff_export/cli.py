"""`tadiff-export`: a checkpoint in, an engine bundle out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tadiff_rt.console import progress_bar, run_main, say, tell
from tadiff_rt.errors import EngineError, printable

HELP = """Turn a TaDiff checkpoint into an engine bundle, and prove that the bundle computes it.

\b
Examples:
  tadiff-export run                        run folder of `tadiff-train fit` -> run.tadiff
  tadiff-export tadiff.ckpt                a Lightning checkpoint, as published -> tadiff.tadiff
  tadiff-export weights.pt --num-heads 4 --timesteps 1000 --schedule linear
  tadiff-export run --target onnx torch    for a machine that has PyTorch, too
  tadiff-export run --target onnx tensorrt --precision fp32 fp16

\b
What a checkpoint does not state must be given: heads, timesteps and schedule change no shape of
the weights, and a network with wrong ones runs and is wrong. Nothing in a checkpoint is executed.
Then:
  tadiff-rt info run.tadiff                what is in the bundle, and its certificates
  tadiff-rt predict --engine run.tadiff ...
"""

app = typer.Typer(
    name="tadiff-export",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(
    help=HELP,
    epilog="--errors=json prints errors as JSON, --debug adds a traceback.",
)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, or a .ckpt, .pt, .pth or .safetensors file.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Bundle, NAME.tadiff; default: beside the checkpoint."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<name> ...",
            help="What to make: onnx [default], tensorrt, tensorrt-rtx, torch.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<name> ...", help="Of graphs and engines: fp32 [default], fp16, bf16."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=64, help="Images a call; default: for this size.")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, if the checkpoint has none.")
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="T of training; published: 1000.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Noise schedule: linear.")] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Image edge in voxels; published: 192.")
    ] = None,
    spacing_mm: Annotated[
        float | None, typer.Option("--spacing", help="Voxel edge in mm; published: 1.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="A whole model card as JSON, in place of these.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; default: the file's.")] = None,
    trained_on: Annotated[
        str | None, typer.Option("--trained-on", help="Training data, in words.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="<n.n> ...",
            help="GPUs of a tensorrt-rtx engine; default: those from 8.0 on.",
        ),
    ] = None,
    workspace_mb: Annotated[
        int,
        typer.Option(
            "--workspace-mb", min=1, max=1 << 20, help="Scratch memory of an engine's layers."
        ),
    ] = 4096,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", help="File that keeps measurements between builds."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """See HELP."""
    try:
        from tadiff_export.checkpoint import Asked
        from tadiff_export.package import bundle_path, export, summary
        from tadiff_export.wanted import Wanted
    except ModuleNotFoundError as e:
        what = f"tadiff-export needs the package {e.name}, which is not installed"
        raise EngineError("TD5008", what, fix="pip install 'tadiff[export]'") from None
    bundle = bundle_path(checkpoint, out)
    manifest = export(
        checkpoint,
        bundle,
        asked=Asked(
            num_heads=num_heads,
            timesteps=timesteps,
            schedule=schedule,
            card=card,
            name=name,
            trained_on=trained_on,
            size=size,
            spacing_mm=spacing_mm,
        ),
        wanted=Wanted(
            targets=_each_once(target or ["onnx"]),
            precisions=_each_once(precision or ["fp32"]),
            batch=batch,
            compute_capabilities=_each_once(compute_capability or []),
            workspace_bytes=workspace_mb << 20,
            timing_cache=timing_cache,
        ),
        overwrite=overwrite,
        stage=lambda title: progress_bar(title, quiet),
        say=(lambda message: None) if quiet else (lambda message: say(printable(message))),
    )
    tell("\n".join(printable(line) for line in summary(manifest, bundle).split("\n")))


LISTS = ("--target", "--precision", "--compute-capability")
"""Options that take several values."""


def spread(arguments: Sequence[str]) -> list[str]:
    """Arguments with every value of a list behind an option of its own.

    So that both `--target onnx torch` and `--target onnx --target torch` and `--target onnx,torch`
    are understood. A list ends where a word is none of its values.
    """
    from tadiff_export.wanted import PRECISIONS, TARGETS

    known = {"--target": TARGETS, "--precision": PRECISIONS}
    spread_out: list[str] = []
    option, first = "", False
    for word in arguments:
        name, equals, value = word.partition("=")
        if name in LISTS:
            spread_out += [option] if first else []  # an option without any value
            option, first = name, not equals
            if equals:
                spread_out += [f"{name}={part}" for part in _parts(value)]
            continue
        of_list = option and all(_is_value(part, known.get(option)) for part in _parts(word))
        if option and (first or of_list):
            spread_out += [f"{option}={part}" for part in _parts(word)]
            first = False
            continue
        option = ""
        spread_out.append(word)
    return [*spread_out, *([option] if first else [])]


def _parts(word: str) -> list[str]:
    return [part for part in word.split(",") if part] or [word]


def _is_value(word: str, known: Sequence[str] | None) -> bool:
    if known is not None:
        return word in known
    major, dot, minor = word.partition(".")
    return dot == "." and major.isdecimal() and minor.isdecimal()


def _each_once(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def main() -> None:
    """Entry point of `tadiff-export`."""
    run_main(app, "tadiff-export", spread(sys.argv[1:]))
