"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, for instance configs/NAME.yaml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
AliasName = Annotated[str, typer.Option("--alias", help="Which alias.")]
Reason = Annotated[str, typer.Option(help="Why; the ledger keeps it.")]
Actor = Annotated[str, typer.Option("--by", metavar="NAME", help="Who does it; default: user@host.")]
