"""The report's plots: drawn once, kept as PNG and as SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.records import PromptResult, ValidationReport
from tasks.report.quantities import power_of_ten
from tasks.report.svg import inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of a light page, and what the page calls them: Okabe and Ito's blue and vermillion, darkened to be read.
INK, MUTED, LINE, BLUE, PALE, RED = "#1a1f25", "#57606b", "#d5dbe2", "#0a62a8", "#a9cbe8", "#b8400a"
_NAMES = {INK: "ink", MUTED: "muted", LINE: "line", BLUE: "blue", PALE: "pale", RED: "red"}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "hatch.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "svg.fonttype": "none",
}
_WIDTH = 3.8  # inches: its text is still to be read at a phone's width
_BARS = 40


class Plot(NamedTuple):
    """A plot in both forms."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


class _Kind(NamedTuple):
    name: str
    title: str
    caption: str
    draw: Callable[[ValidationReport], Figure | None]


def draw(report: ValidationReport) -> list[Plot]:
    """Return the plots that the report has data for."""
    import matplotlib

    found = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user's would change the bytes
        matplotlib.rcParams.update(_STYLE)
        for kind in _KINDS:
            if figure := kind.draw(report):
                matplotlib.rcParams["svg.hashsalt"] = kind.name  # the same ids each time, others in each plot
                found.append(Plot(kind.name, kind.title, kind.caption, _svg(figure, kind), _png(figure)))
    return found


def _svg(figure: Figure, kind: _Kind) -> str:
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    colours = {colour: f"var(--{name})" for colour, name in _NAMES.items()}
    return inline(written.getvalue(), title=kind.title, colours=colours)


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return written.getvalue()


def _figure(height: float, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _kl_by_position(report: ValidationReport) -> Figure | None:
    bands = [band for band in report.kl_by_position if math.isfinite(band.mean + band.p10 + band.p90)]
    if not bands:
        return None
    figure, (axes,) = _figure(2.7)
    edges = [band.start for band in bands] + [bands[-1].end]
    low, high = [band.p10 for band in bands], [band.p90 for band in bands]
    axes.stairs(high, edges, baseline=low, fill=True, color=PALE, label="10 to 90 %")
    axes.stairs([band.mean for band in bands], edges, baseline=None, color=BLUE, linewidth=1.8, label="mean")
    floor = report.metrics.get("noise_floor_kl_mean")
    if floor is not None and math.isfinite(floor):
        axes.axhline(floor, color=RED, linestyle="--", linewidth=1.2, label=f"noise floor {floor:.2g}")
    axes.set(xlabel="position in the window, tokens", ylabel="KL divergence, nats", xlim=(edges[0], edges[-1]))
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def _kl_histogram(report: ValidationReport) -> Figure | None:
    counts = [count for *_, count in report.kl_histogram]
    if not any(counts):
        return None
    edges = [low for low, *_ in report.kl_histogram] + [report.kl_histogram[-1][1]]
    edges[0] = edges[0] or edges[1] / 10  # a logarithmic axis has no zero
    figure, (axes,) = _figure(2.7)
    part = "text" if "text_kl_mean" in report.metrics else "answers"  # of which the counts are
    axes.stairs(counts, edges, fill=True, color=PALE, edgecolor=BLUE, linewidth=0.8)
    for metric, name, style in (("median", "median", ":"), ("mean", "mean", "-"), ("p99", "99 %", "--")):
        value = report.metrics.get(f"{part}_kl_{metric}", 0)
        if 0 < value < math.inf:
            axes.axvline(value, color=RED, linestyle=style, linewidth=1.4, label=f"{name} {value:.3g}")
    filled = [index for index, count in enumerate(counts) if count]
    axes.set(xscale="log", yscale="log", xlabel="KL divergence, nats", ylabel="tokens", ylim=(0.7, max(counts) * 1.6))
    lowest, highest = math.floor(math.log10(edges[filled[0]])), math.ceil(math.log10(edges[filled[-1] + 1]))
    axes.set_xlim(10.0**lowest, 10.0**highest)  # whole decades, so that there are ticks
    axes.xaxis.set_major_formatter(lambda value, _: power_of_ten(round(math.log10(value))))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _divergence(report: ValidationReport) -> Figure | None:
    compared = sorted((result for result in report.prompts if result.divergence), key=_same)
    if not compared:
        return None
    shown = compared[:_BARS][::-1]  # matplotlib counts from the bottom
    figure, (axes,) = _figure(1.1 + 0.2 * len(shown))
    rows = range(len(shown))
    same = [_same(result) for result in shown]
    lengths = [len(result.answer.token_ids) for result in shown]
    rest = [length - first for length, first in zip(lengths, same, strict=True)]
    parted = [row for row in rows if rest[row]]
    axes.barh(rows, same, 0.6, color=BLUE, label="as the source")
    axes.barh(rows, rest, 0.6, left=same, color=PALE, hatch="////", label="its own way")
    axes.plot([same[row] for row in parted], parted, "D", color=RED, markersize=4.5, clip_on=False, label="parts")
    axes.set_yticks(rows, [_short(result.id) for result in shown])
    axes.tick_params(axis="y", length=0, pad=7)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set(xlabel="tokens of the answer", ylim=(-0.7, len(shown) - 0.3))
    if len(compared) > len(shown):
        axes.set_title(f"{len(shown)} of {len(compared)} answers, those that part first", fontsize=9)
    if max(lengths) > 8 * median(lengths):  # one long answer would press all others to the edge
        axes.set_xscale("symlog", linthresh=10)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("tokens of the answer, logarithmic from 10")
    axes.set_xlim(left=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[1:] + handles[:1], labels[1:] + labels[:1], loc="outside upper left", ncols=3, columnspacing=1
    )
    return figure


def _same(result: PromptResult) -> int:
    """How many tokens of an answer are the source model's own."""
    parts = result.divergence.first_divergent_token if result.divergence else None
    return len(result.answer.token_ids) if parts is None else parts


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _latency(report: ValidationReport) -> Figure | None:
    rounds = sorted(report.latency, key=lambda one: one.concurrency)
    if not rounds:
        return None
    figure, axes = _figure(3.6, rows=2)
    place, ticks = 0.0, []
    for number, (concurrency, group) in enumerate(groupby(rounds, key=lambda one: one.concurrency)):
        places = []
        for one in group:
            for panel, values in zip(axes, (one.ttft_ms, one.tpot_ms), strict=True):
                _strip(panel, place, values, second=number > 0)
            places.append(place)
            place += 1
        ticks.append((sum(places) / len(places), f"{concurrency} at a time\n{len(places)} rounds"))
        place += 0.5
    axes[0].set_ylabel("first token, ms")
    axes[1].set_ylabel("per token after, ms")
    axes[1].set_xticks(*zip(*ticks, strict=True))
    axes[1].tick_params(axis="x", length=0)
    for panel in axes:
        panel.set_ylim(bottom=0)
    return figure


def _strip(axes: Axes, place: float, values: tuple[float, ...], *, second: bool) -> None:
    """Draw a point a prompt, in the prompts' order, and their median as a line."""
    if not values:
        return
    step = 0.7 / max(1, len(values) - 1)
    points = [place - 0.35 + step * index for index in range(len(values))] if len(values) > 1 else [place]
    colour, marker = (RED, "^") if second else (BLUE, "o")
    axes.plot(points, values, marker, color=colour, markersize=3, alpha=0.6, markeredgewidth=0)
    axes.plot([place - 0.42, place + 0.42], [median(values)] * 2, color=colour, linewidth=2, solid_capstyle="butt")


_KINDS = (
    _Kind(
        "kl-by-position",
        "KL divergence by position",
        "How far the exported model is from its source on the text, by position in the window. Flat is good; a rise "
        "says that long contexts suffer.",
        _kl_by_position,
    ),
    _Kind(
        "kl-histogram",
        "KL divergence of each token",
        "How many tokens of the text are how far from the source model. Both axes are logarithmic; what lies far to "
        "the right is where an answer may part.",
        _kl_histogram,
    ),
    _Kind(
        "divergence",
        "Where the answers part from the source model's",
        "A bar is an answer, the earliest to part first. Without a mark the source model gives the same answer.",
        _divergence,
    ),
    _Kind(
        "latency",
        "Latency of each prompt",
        "A point is a prompt, a line the median of its round. Above: time to the first token; below: mean time of "
        "each token after it.",
        _latency,
    ),
)
