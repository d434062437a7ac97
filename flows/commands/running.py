"""The pipeline as a team runs it: servers, deployments, how all is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import AsJson

if TYPE_CHECKING:
    from flows.up import Servers


def up(
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
    backend_store_uri: Annotated[
        str,
        typer.Option(
            metavar="URI", help="MLflow's database; default: mlruns/mlflow.db.", envvar="VINOFLOW_BACKEND_STORE_URI"
        ),
    ] = "",
    artifacts: Annotated[
        str, typer.Option(metavar="URI", help="MLflow's artifacts, s3://... say; default: mlruns/artifacts.")
    ] = "",
    prefect_database: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="Prefect's database; default: a file below mlruns/servers.",
            envvar="VINOFLOW_PREFECT_DATABASE",
        ),
    ] = "",
    queue: Annotated[list[str] | None, typer.Option(help="Of the worker; default: all. May be given again.")] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Servers only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an MLflow server, a Prefect server and a worker on this machine until Ctrl-C.

    They listen on this machine only. One that dies or hangs is begun again. Beyond one machine: docs/production.md.
    """
    from flows.console import live_progress, say
    from flows.up import Wanted
    from flows.up import up as run

    def ready(servers: Servers) -> None:
        if as_json:
            typer.echo(servers.model_dump_json())
            return
        typer.echo(f"export MLFLOW_TRACKING_URI={servers.mlflow}")
        typer.echo(f"export PREFECT_API_URL={servers.prefect}")
        say("set these two where you work, then `vinoflow deploy`; both have a page, Ctrl-C ends all")

    wanted = Wanted(
        mlflow_port=mlflow_port,
        prefect_port=prefect_port,
        backend_store_uri=backend_store_uri,
        artifacts=artifacts,
        prefect_database=prefect_database,
        queues=tuple(queue or ()),
        worker=not no_worker,
    )
    with live_progress():
        run(wanted, on_ready=ready, on_trouble=say)


def deploy(
    file: Annotated[Path, typer.Option(metavar="FILE", help="In the shape of Prefect's prefect.yaml.")] = Path(
        "prefect.yaml"
    ),
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE/NAME", help="A notification block that is told of failed gates, promotions, crashes."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the deployments of prefect.yaml: scheduled exports, promotions and batches. Again: nothing twice.

    Makes the work pool too, and an automation that ends the runs of a machine that is gone.
    """
    from flows.console import live_progress, show_table
    from flows.deploying import deploy as run
    from flows.environment import prepare_prefect
    from flows.up import find_servers

    find_servers()
    with live_progress():
        prepare_prefect()
        made = run(file, notify=notify or ())
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in made]))
    else:
        show_table([("deployment", "queue", "starts"), *((one.name, one.queue, one.starts) for one in made)])


def status(
    server: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A `vinoflow serve`. May be given again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell how servers, workers, deployments and models are. Exit code 1: something is down."""
    from flows.console import show_table
    from flows.status import is_down
    from flows.status import status as ask
    from flows.up import find_servers

    find_servers()
    lines = ask(server or ())
    if as_json:
        typer.echo(json.dumps([line.model_dump(mode="json") for line in lines]))
    else:
        show_table([("what", "name", "state", "about"), *((one.what, one.name, one.state, one.about) for one in lines)])
    if is_down(lines):
        raise typer.Exit(1)
