"""The `vinoflow` command."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import traceback
from pathlib import Path

import typer

from flows.commands import (
    asking,
    batching,
    chatting,
    handing_on,
    keeping,
    ledger,
    looking,
    making,
    promoting,
    running,
    serving,
)
from flows.environment import prefect_trouble
from tasks import locations, secrecy, telemetry
from tasks.errors import DiskFullError, UnwritableError, VinoflowError

_NO_ROOM_BYTES = 1 << 20  # less is none: a database's next page does not fit

app = typer.Typer(
    name="vinoflow",
    help="Export language models to OpenVINO, prove on the device that they answer well, register and serve them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    making.export_and_validate,
    asking.ask,
    chatting.chat,
    batching.batch,
    batching.lineage,
    promoting.promote,
    promoting.rollback,
    promoting.approve,
    promoting.reject,
    ledger.ledger,
    serving.serve,
    serving.api_key,
    looking.list_,
    looking.show,
    looking.diff,
    keeping.gc,
    keeping.doctor,
    handing_on.export_ovms,
    running.up,
    running.deploy,
    running.status,
    making.check,
    making.explain_loss,
    making.schema,
):
    app.command(command.__name__.rstrip("_").replace("_", "-"))(command)


def main() -> None:
    """Run the command; our own errors are one line and an exit code, bugs keep their traceback."""
    telemetry.turn_off()
    secrecy.keep()
    try:
        app()
    except VinoflowError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except Exception as error:
        known = _full_disk(error) or _unwritable(error)
        if known is None and (silent := prefect_trouble(error)):
            _fail(silent, wait=False)
        if known is None:
            sys.stderr.write(secrecy.without_secrets(traceback.format_exc()))
            sys.exit(1)
        _fail(known)


def _full_disk(error: Exception) -> DiskFullError | None:
    """Return what to say where a full disk is behind an error, which Prefect says in many ways; None: it is not."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFullError(f"the disk is full: {error.filename or error}; free some room and run again")
    for folder in (locations.home(), locations.cache()):
        if folder.is_dir() and shutil.disk_usage(folder).free < _NO_ROOM_BYTES:
            return DiskFullError(f"the disk is full: {folder} has no room ({error}); free some and run again")
    return None


def _unwritable(error: Exception) -> UnwritableError | None:
    """Return what to say where a folder of ours cannot be written; None: it is another error."""
    if isinstance(error, OSError) and error.errno in locations.UNWRITABLE and error.filename:
        for folder in (locations.cache(), locations.home()):
            if Path(os.fsdecode(error.filename)).is_relative_to(folder):
                return UnwritableError(f"{locations.unwritable(error, folder)}; then run again")
        return UnwritableError(f"{error.filename} cannot be written ({error.strerror}): mend that, then run again")
    return None


def _fail(error: VinoflowError, *, wait: bool = True) -> None:
    """End with an error; without waiting for Prefect's threads where its server is gone: each event would take 11 s."""
    sys.stderr.write(f"error: {secrecy.without_secrets(str(error))}\n")
    if not wait:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.exit_code)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
