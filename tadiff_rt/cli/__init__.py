"""`tadiff-rt`: forecasts, the demo, and what a bundle is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tadiff_rt.cli.certify import certify
from tadiff_rt.cli.options import Out, Threads
from tadiff_rt.cli.predict import predict
from tadiff_rt.cli.words import SeveralWords, summary, written
from tadiff_rt.console import progress_bar, run_main, tell
from tadiff_rt.errors import printable

app = typer.Typer(
    name="tadiff-rt",
    help="Treatment-aware forecasts of glioma MRI. Research only, not for diagnosis or treatment.",
    epilog="With every command: --errors=json prints errors as JSON, --debug adds a traceback.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=SeveralWords)(predict)


@app.command()
def demo(
    out: Out = Path("demo"),
    samples: Annotated[str, typer.Option(help="Ensemble members of each forecast.")] = "3",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Forecast the bundled simulated case on two days under two treatments, and compare."""
    from tadiff_rt.commands import run_demo

    with progress_bar("demo", quiet) as progress:
        comparison = run_demo(out, samples, threads, overwrite, progress)
    for line in summary(comparison.report):
        tell(line)
    tell(written(out, "report.html"))


@app.command()
def info(
    bundle: Annotated[str, typer.Argument(help="Engine bundle, a folder NAME.tadiff.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """What a bundle computes and how far it may be trusted. Reads the manifest alone."""
    from tadiff_rt.bundle import describe_bundle, open_bundle

    opened = open_bundle(bundle)
    if as_json:
        tell(json.dumps(opened.manifest.model_dump(mode="json"), indent=2))
    else:
        tell("\n".join(printable(line) for line in describe_bundle(opened).split("\n")))


app.command()(certify)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        from importlib.metadata import version as installed

        tell(f"tadiff {installed('tadiff')}")
        raise typer.Exit


def main() -> None:
    """Entry point of `tadiff-rt`."""
    run_main(app, "tadiff-rt")
