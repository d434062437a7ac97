"""vinoflow, or one stage of it, that something befalls at an exact point.

`python -m tests.killed POINT FUNCTION ARGUMENTS...`, where POINT is the JSON of a `Point` and FUNCTION one of this
file: `vinoflow` or a stage. Nothing in vinoflow knows of this: what the point names is wrapped before vinoflow starts.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tasks import child, guard, telemetry
from tasks.child import Message
from tasks.recipe_file import load_recipe
from tasks.records import ExportedModel, ValidationReport


class Point(BaseModel):
    """The nth call of a function with `match` in its arguments or, where it strikes after it, in its result."""

    target: str
    when: Literal["before", "half", "after"] = "before"  # half: half of the bytes, its second argument, are written
    match: str = ""
    nth: int = 1
    fill: Path | None = None  # in place of a kill -9: fill the file system of this folder

    def arm(self) -> None:
        """Wrap the function."""
        module, _, path = self.target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original, calls = getattr(owner, name), 0

        def hit(*values: object) -> bool:
            nonlocal calls
            calls += self.match in repr(values)
            return self.match in repr(values) and calls == self.nth

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.when == "after":
                result = original(*args, **kwargs)
                if hit(args, kwargs, result):
                    self.strike()
                return result
            if hit(args, kwargs):
                if self.when == "half":
                    original(args[0], args[1][: len(args[1]) // 2], **kwargs)
                self.strike()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def strike(self) -> None:
        if self.fill is None:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # the signal is on its way
        else:
            fill(self.fill)


def fill(folder: Path) -> None:
    """Leave no byte free on a folder's file system."""
    with (folder / "rubbish").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def vinoflow(*arguments: str) -> None:
    from flows.cli import main

    sys.argv = ["vinoflow", *arguments]
    main()


def download_stage(recipe: str) -> None:
    from tasks.download import download

    guard.start()
    download(load_recipe(Path(recipe)).source)


def export_stage(recipe: str, finished: str) -> None:
    """Export with a child process that hands over a finished export: what is struck comes after it."""
    from tasks.download import download
    from tasks.export import export

    def run(module_name: str, request: Message, **_: Any) -> Message:
        shutil.copytree(finished, request["output"], ignore=shutil.ignore_patterns("manifest.json"))
        return {"peak_rss_bytes": 1}

    setattr(child, "run", run)  # noqa: B010 - of another signature
    loaded = load_recipe(Path(recipe))
    export(download(loaded.source), loaded.export)


def register_stage(recipe: str, exported: str, report: str) -> None:
    from tasks.registry import RunContext, record, register

    loaded = load_recipe(Path(recipe))
    made = ExportedModel.model_validate_json(exported)
    found = ValidationReport.model_validate_json(report)
    context = RunContext(started_at=time.time(), inputs="inputs-of-tiny")
    with tempfile.TemporaryDirectory() as evidence:
        run_id = record(loaded, made, found, context, evidence=Path(evidence))
    register(loaded, made, found, context, run_id=run_id)


def pull_stage(reference: str) -> None:
    from tasks.registry import pull

    print(pull(reference).path)


def promote_stage(reference: str) -> None:
    from flows.promotion import consider, promote

    promote(consider(reference, alias="champion"))


def rollback_stage(name: str) -> None:
    from flows.promotion import roll_back

    roll_back(name)


if __name__ == "__main__":
    telemetry.turn_off()
    Point.model_validate_json(sys.argv[1]).arm()
    globals()[sys.argv[2]](*sys.argv[3:])
