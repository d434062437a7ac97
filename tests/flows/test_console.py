from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.console import live_progress, show_table
from tasks.progress import step

ROOT = Path(__file__).parents[2]
ON_A_TERMINAL = """
import sys, time
from flows.console import live_progress
from tasks.progress import step
with live_progress():
    with step("load", total=4, unit="steps") as current:
        current.update(done=2)
        time.sleep(0.5)
    sys.stdout.write("the answer")
    sys.stdout.flush()
    time.sleep(0.5)
    sys.stdout.write(" streams\\n")
"""


def test_a_finished_step_is_a_line_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    with live_progress():
        with step("upload", total=2_500_000, unit="bytes") as upload:
            upload.update(done=2_500_000)
        with step("generate", total=3, unit="steps") as generate:
            generate.update(done=3, note="[not markup]")
        with pytest.raises(ValueError, match="gone"), step("export", total=200):
            raise ValueError("gone")
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"✓ upload +\d+\.\d s  2\.5 MB of 2\.5 MB", first)
    assert re.fullmatch(r"✓ generate +\d+\.\d s  3 of 3  \[not markup\]", second)
    assert re.fullmatch(r"✗ export +\d+\.\d s  0 %", third)


def test_on_a_terminal_what_streams_between_steps_is_left_alone() -> None:
    main, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stdout=terminal, stderr=terminal, cwd=ROOT)
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(main, 4096):
            shown += block
    except OSError:  # Linux's way to say that the other end is closed
        pass
    assert process.wait() == 0
    os.close(main)
    text = shown.decode()
    assert "2 of 4" in text
    assert "the answer streams" in text  # nothing was drawn in between


def test_tables_are_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([("version", "mix"), ("a-long-name/1", "x" * 300)])
    assert capsys.readouterr().out.splitlines() == ["version        mix", "a-long-name/1  " + "x" * 300]
