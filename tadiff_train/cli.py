"""`tadiff-train`: simulated cohorts, training, and evaluation."""

import typer

from tadiff_rt.console import run_main
from tadiff_train.commands.distill import distill
from tadiff_train.commands.evaluate import evaluate
from tadiff_train.commands.fit import fit
from tadiff_train.commands.inspect import inspect
from tadiff_train.commands.phantom import phantom

app = typer.Typer(
    name="tadiff-train",
    help="Train TaDiff and judge it. Research only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (phantom, inspect, fit, evaluate, distill):
    app.command()(command)


def main() -> None:
    """Entry point of `tadiff-train`."""
    run_main(app, "tadiff-train")
