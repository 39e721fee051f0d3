"""Options that several commands share."""

from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
