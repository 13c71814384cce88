"""Options that several commands share."""

from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be given several times."),
]

Runner = Annotated[
    str | None,
    typer.Option(
        metavar="KIND:N",
        help="Spread the work over N workers: processes:N, ray:N, dask:N, or KIND:N@ADDRESS of a "
        "cluster (docs/runners.md).",
    ),
]
