"""Prints what was measured, as Markdown that can be pasted into docs/benchmarks.md; writes nothing."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import psutil

from tasks.versions import EXPORT, RUN, versions
from tests.benchmarks.measure import Run


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and an aligned table."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n### {title}\n")
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def machine() -> str:
    """Return date, processor, memory, load and library versions: what a figure means nothing without."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor()
    libraries = ", ".join(f"{name} {number}" for name, number in versions((*EXPORT, *RUN)).items())
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}; nproc {os.cpu_count()}, {cpu}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; load before {os.getloadavg()[1]:.1f} (5 min); {libraries}"
    )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of ours / theirs: what disturbs a whole round disturbs both sides of it."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median of the rounds' ratios, and their span where there are several."""
    found = [one / other for one, other in zip(ours, theirs, strict=True)]
    span = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    return f"{median(found):.2f}{span}"


def bar(value: float, limit: float) -> str:
    """Return PASS or OVER: a bar is printed, never asserted, for a time is the machine's as much as ours."""
    return f"{'PASS' if value <= limit else 'OVER'} (bar {limit:g})"


def breakdown(runs: Sequence[Run], phases: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the median seconds of each phase of what `stages` timed.

    Args:
        runs: Of `python -m tests.benchmarks.stages`.
        phases: The mark that begins a phase ("" for the process's start), and the phase's name, in order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in phases.values()}
    for run in runs:
        marks = {"": 0.0, **dict(json.loads(run.stdout)["marks"])}
        times = [marks[mark] for mark in phases] + [run.wall_s]
        for name, start, end in zip(seconds, times, times[1:], strict=False):
            seconds[name].append(end - start)
    return [(name, f"{median(values):.2f}") for name, values in seconds.items()]
