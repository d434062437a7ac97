"""The reference pages, made from the code each time the site is built: what they say cannot grow old."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import typer
from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.core import TyperArgument, TyperGroup

from flows.cli import app
from tasks.config import Batch, Recipe, Serving
from tasks.config.base import Config
from tasks.metrics import BUILT_IN_GATES, METRICS, NEED_REFERENCE, OF_THE_MACHINE, PARTS, Metric

Schema = dict[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages, Markdown by path."""
    return {
        "reference/cli.md": "\n".join(_commands()),
        "reference/recipe.md": _settings(
            Recipe,
            title="The recipe",
            about="One YAML file is one model; relative paths in it start at its own folder. `vinoflow schema` prints "
            "the same as a JSON schema, by which an editor completes and checks a recipe. Unknown keys are refused.",
        ),
        "reference/serve.md": _settings(
            Serving,
            title="Settings of serve",
            about="A YAML file that `vinoflow serve REF --config FILE` reads; its options come before the file. "
            "`vinoflow schema serve` prints the same as a JSON schema.",
        ),
        "reference/batch.md": _settings(
            Batch,
            title="Settings of batch",
            about="A YAML file that `vinoflow batch INPUT OUTPUT --model REF --config FILE` reads; `--set NAME=VALUE` "
            "sets one (`columns.prompt=question`) and comes before the file. `vinoflow schema batch` prints the same "
            "as a JSON schema.",
        ),
        "reference/metrics.md": "\n".join(_metrics()),
    }


def _commands() -> Iterator[str]:
    """Yield the command line's page, from what `--help` says."""
    yield (
        "# Commands\n\nWhat `vinoflow COMMAND --help` says. Results go to stdout, progress and remarks to stderr, and "
        "`--json` prints JSON for machines.\n\n"
        "Exit codes: 0, done; 1, an error, told in one line that begins with `error:`; 2, wrong usage; 3, a gate or a "
        "policy says no; 130, Ctrl-C.\n"
    )
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="vinoflow")
    yield from _group(command, context)


def _group(group: Any, context: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        inner = typer.Context(command, info_name=name, parent=context)
        if isinstance(command, TyperGroup):
            yield from _group(command, inner)
            continue
        usage = " ".join(command.collect_usage_pieces(inner))
        about = inspect.cleandoc(command.help)
        yield f"## {inner.command_path}\n\n```text\n{inner.command_path} {usage}\n```\n\n{about}\n"
        told = [(one, one.get_help_record(inner)) for one in command.get_params(inner) if "--help" not in one.opts]
        told.sort(key=lambda one: not isinstance(one[0], TyperArgument))  # as in the usage above: arguments come first
        rows = [(f"`{record[0]}`", record[1]) for _, record in told if record]
        if rows:
            yield _table(("", ""), rows)


def _metrics() -> Iterator[str]:
    """Yield the page of metrics."""
    yield (
        "# Metrics\n\nEvery number that a validation measures, by the name that `gates:` in a recipe, MLflow and "
        "`report.json` have for it.\n\n"
        "- **Intervals** are 95 % where a metric is a statistic over tokens: a percentile bootstrap over blocks of 64 "
        "positions (Künsch, 1989), 1,000 resamples. Of latency and throughput the smallest and the largest round "
        "stand in their place. A gate looks at the bound on its bad side.\n"
        "- **Built-in gates** hold for any model; a recipe sets its own limit by the same name, or `null` for none.\n"
        "- **Source** is the tool or publication whose definition it is, or the module of vinoflow that defines it.\n"
        "- A metric that could not be measured is left out, and a gate on it fails.\n"
    )
    left = dict(METRICS)
    for part, where in PARTS.items():
        statistics = {name: _in(where, left.pop(name)) for name in METRICS if _of(part, name)}
        about = "" if part != "device" else " The CPU stands where `source` is said."
        yield f"## Token by token, {part}\n\nCompared {where}.{about}\n\n{_metric_table(statistics)}"
    groups: dict[str, Callable[[str], bool]] = {
        "Against the source model": lambda name: name in NEED_REFERENCE,
        "Speed and memory": lambda name: name in OF_THE_MACHINE or name == "concurrent_prompts",
        "Of the export itself": lambda _: True,
    }
    for title, belongs in groups.items():
        chosen = {name: left.pop(name) for name in list(left) if belongs(name)}
        yield f"## {title}\n\n{_metric_table(chosen)}"


def _of(part: str, name: str) -> bool:
    """Return whether a metric is a statistic of a part: those of the text are those of all."""
    suffix = name.removeprefix(f"{part}_")
    return suffix != name and f"text_{suffix}" in METRICS


def _in(where: str, metric: Metric) -> Metric:
    """Return a statistic without what the section's heading says."""
    return metric._replace(definition=metric.definition.replace(f", {where}.", "."))


def _metric_table(metrics: Mapping[str, Metric]) -> str:
    return _table(
        ("metric", "definition", "unit", "better", "built-in gate", "source"),
        (
            (f"`{name}`", one.definition, one.unit, one.better, _gate(name), _source(one.source))
            for name, one in metrics.items()
        ),
    )


def _gate(name: str) -> str:
    words = {"min": "at least", "max": "at most"}
    return ", ".join(f"{words[side]} {limit:g}" for side, limit in BUILT_IN_GATES.get(name, {}).items())


def _source(text: str) -> str:
    return f"`{text}`" if text.startswith("tasks/") else text


def _settings(model: type[Config], *, title: str, about: str) -> str:
    """Return the page of a settings model, a section for it and for each model inside it."""
    schema = model.model_json_schema()
    known = schema.pop("$defs", {})
    sections = {"": schema} | {path: known[name] for path, name in _inside(schema, known, "")}
    places = {name: path for path, name in _inside(schema, known, "")}
    told = [f"# {title}\n\n{about}\n"]
    for path, section in sections.items():
        heading = f"## {_heading(path, section)}\n\n{section.get('description', '')}\n\n" if path else ""
        required = section.get("required", ())
        rows = [
            (
                f"`{name}`",
                _type(one, known, places),
                _default(one, required=name in required),
                one.get("description", ""),
            )
            for name, one in section["properties"].items()
        ]
        told.append(heading + _table(("key", "is", "default", ""), rows))
    return "\n".join(told)


def _inside(schema: Schema, known: Mapping[str, Schema], path: str) -> Iterator[tuple[str, str]]:
    """Yield where in a file each model stands, and its name, in the order in which they are met."""
    for key, one in schema["properties"].items():
        for where, name in _references(one, f"{path}.{key}".lstrip(".")):
            kind = known[name]["properties"].get("kind", {}).get("const")
            place = f"{where}, kind {kind}" if kind else where
            yield place, name
            yield from _inside(known[name], known, where)


def _references(one: Schema, path: str) -> Iterator[tuple[str, str]]:
    if "$ref" in one:
        yield path, one["$ref"].rpartition("/")[2]
    for choice in (*one.get("anyOf", ()), *one.get("oneOf", ())):
        yield from _references(choice, path)
    if isinstance(one.get("items"), dict):
        yield from _references(one["items"], f"{path}[]")
    if isinstance(one.get("additionalProperties"), dict):
        yield from _references(one["additionalProperties"], f"{path}.NAME")


def _heading(path: str, section: Schema) -> str:
    return path if path else section["title"]


def _type(one: Schema, known: Mapping[str, Schema], places: Mapping[str, str]) -> str:
    """Return in words what a value may be."""
    if "$ref" in one:
        name = one["$ref"].rpartition("/")[2]
        return f"[{places[name]}](#{slugify(places[name], '-')})"
    if choices := (*one.get("anyOf", ()), *one.get("oneOf", ())):
        return " or ".join(_type(choice, known, places) for choice in choices)
    if "const" in one or "enum" in one:
        return " or ".join(f"`{value}`" for value in one.get("enum", [one.get("const")]))
    kind = str(one.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(one.get('items', {}), known, places)}"
    if kind == "object":
        values = one.get("additionalProperties")
        return f"{_type(values, known, places)} by name" if isinstance(values, dict) else "anything by name"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "null": "nothing"}
    return ", ".join((words.get(kind, kind), *_limits(one)))


def _limits(one: Schema) -> Iterator[str]:
    limits = {
        "minimum": "at least {}",
        "exclusiveMinimum": "more than {}",
        "maximum": "at most {}",
        "minLength": "not empty",
        "pattern": "as `{}`",
        "format": "a {}",
    }
    yield from (words.format(one[name]) for name, words in limits.items() if name in one)


def _default(one: Schema, *, required: bool) -> str:
    if required:
        return "needed"
    if "default" not in one or "$ref" in one:
        return "its own" if "$ref" in one else ""
    value = one["default"]
    if value in (None, "", [], {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Return a text for a table: a bar in code needs no escape, one in words does."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if number % 2 else part.replace("|", "\\|") for number, part in enumerate(parts))
