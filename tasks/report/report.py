"""ValidationReport -> report.html (one file that needs nothing else), report.json and plots/*.png."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from tasks import progress
from tasks.config import Recipe
from tasks.records import ExportedModel, ValidationReport
from tasks.report.answers import side_by_side, tokens_in_words
from tasks.report.page import sections
from tasks.report.plots import Plot, draw
from tasks.report.provenance import provenance, recipe_yaml
from tasks.report.quantities import share, significant
from tasks.report.visible import pieces, quoted

_HERE = Path(__file__).parent


def write_report(report: ValidationReport, recipe: Recipe, exported: ExportedModel, folder: Path) -> Path:
    """Write the report of a validation into a folder, the same bytes for the same arguments; return its page's path."""
    page = folder / "report.html"
    with progress.step("report"):
        plots = draw(report)
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (folder / "plots" / f"{plot.name}.png").write_bytes(plot.png)
        (folder / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        page.write_text(_render(report, recipe, exported, plots), encoding="utf-8")
    return page


def _render(report: ValidationReport, recipe: Recipe, exported: ExportedModel, plots: list[Plot]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "pieces": pieces,
        "quoted": quoted,
        "share": share,
        "significant": significant,
        "tokens": tokens_in_words,
    }
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        report=report,
        recipe=recipe,
        style=style,
        # a browser then applies this style and nothing else: no script, no request, no style out of an answer
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        plots=plots,
        prompts=side_by_side(report),
        recipe_yaml=recipe_yaml(recipe),
        provenance=provenance(report, exported),
        **sections(report, recipe, exported),
    )
