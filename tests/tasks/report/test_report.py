from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.manifest import digest_of
from tasks.metrics import BUILT_IN_GATES, METRICS
from tasks.records import ValidationReport
from tasks.report import write_report
from tests.tasks.report.reports import (
    ANSWERS,
    SCRIPT,
    exported_model,
    full_recipe,
    full_report,
    report_without_reference,
    tiny_report,
)

VOID = {"meta", "wbr", "br"}
BLUE, RED = (0x0A, 0x62, 0xA8), (0xB8, 0x40, 0x0A)
PLOTS = ["divergence.png", "kl-by-position.png", "kl-histogram.png", "latency.png"]


class Page(HTMLParser):
    """A page read strictly: each element closed in its turn, and what stands where."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {}  # by the id of the section
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = str(dict(attrs)["id"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text[self._section] = self.text.get(self._section, "") + data

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text.values()))


def written(report: ValidationReport, folder: Path) -> Page:
    return Page(write_report(report, full_recipe(), exported_model(folder), folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(full_report(), full_recipe(), exported_model(folder), folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert not page.tags & {"script", "img", "link", "iframe", "object", "form", "video", "base"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "style", "srcset")]
    assert not [value for _, name, value in page.attributes if name != "title" and "http" in (value or "")]
    links = {str(value) for _, name, value in page.attributes if name == "href"}
    assert links
    assert all(link.startswith("#") for link in links)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    used = [value for _, name, value in page.attributes if "url(" in (value or "") and name != "content"]
    assert {found for value in used for found in re.findall(r"url\(#(.*?)\)", str(value))} <= set(ids)


def test_what_a_model_says_is_never_markup(page: Page, folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>bold" not in text
    assert "{{ 7 * 7 }}" in page.text["prompts"]
    for section in ("prompts", "faults", "recipe"):
        assert SCRIPT in page.text[section]
    assert "\x00" not in text
    assert "\u202e" not in text


def test_every_verdict_is_told_failed_ones_first(page: Page) -> None:
    verdicts = page.text["verdicts"]
    places = {verdict.metric: verdicts.index(verdict.metric) for verdict in full_report().verdicts}
    failed = [verdict.metric for verdict in full_report().verdicts if not verdict.passed]
    assert len(failed) == 4
    assert max(places[metric] for metric in failed) < min(places[m] for m in places if m not in failed)
    for metric in places:
        assert METRICS[metric].definition in verdicts
    assert "at most 0.190 (1.1 of smollm2-135m-instruct/3's 0.173)" in verdicts
    assert "0.175 to 0.193" in verdicts
    assert verdicts.index("warm_start_mismatches") < verdicts.index("switched off by the recipe")
    assert list(page.text)[:2] == ["", "verdicts"]


def test_the_heading_says_what_a_reader_must_not_miss(page: Page) -> None:
    heading = re.sub(r"\s+", " ", page.text[""])
    assert f"✗ FAILED4 of {len(full_report().verdicts)} gates failed: prompts_passed_share is 81.2 %, limit" in heading
    assert "and 1 more. Not judged: 1." in heading
    assert "Ran on CPU: GPU.0 is not here." in heading
    assert "nothing ran on GPU.0" in heading


def test_the_whole_content_is_there(page: Page) -> None:
    for fault in full_report().faults:
        assert fault.subject in page.text["faults"]
    prompts = page.text["prompts"]
    for name in ANSWERS:
        assert name in prompts
    assert prompts.index("✗ looping_answers: repeats 'I am a helpful") < prompts.index("capital-france")
    for result in full_report().prompts:
        for failure in result.failures:
            assert failure in page.text["prompts"]
    for label in ("Perplexity, source", "KL divergence in nats, 99.9 %", "Change of probability, RMS"):
        assert label in page.text["fidelity"]
    for label in ("Load from that cache402 ms", "Peak memory of the engine912.0 MB", "8 at once", "352 tokens/s"):
        assert label in re.sub(r"\s*\n\s*", "", page.text["performance"])
    for metric in full_report().metrics:
        assert metric in page.text["provenance"]
    for words in ("caa3d1c0" * 8, "2026.4.1", "KV_CACHE_PRECISION", "CPU, since GPU.0 is not here", "asked for as"):
        assert words in page.text["provenance"]
    assert "It is a truth universally" not in page.words
    assert f"text: 8,000 characters, digest {digest_of(full_recipe().validation.text)}" in page.text["recipe"]


def test_answers_show_where_they_part(page: Page) -> None:
    prompts = re.sub(r"\s+", " ", page.text["prompts"])
    parted = sum(result.divergence.first_divergent_token is not None for result in full_report().prompts)  # type: ignore[union-attr]
    assert prompts.count("parts here ▸") == prompts.count("goes on ▸") == parted == 13
    assert prompts.count("The source model says the same.") == 3
    assert "The capitalparts here ▸ of France" in prompts
    assert "The capitalgoes on ▸ and so the source says" in prompts
    notes = [value for tag, name, value in page.attributes if (tag, name) == ("span", "title")]
    assert any(
        re.fullmatch(
            r"The source model would say “␣other<script>alert\(1\)</script>”; it gives this token [\d.]+ %\. "
            r"KL divergence [\d.]+ nats\.",
            str(note),
        )
        for note in notes
    )
    assert "… 660 tokens …" in prompts  # of the essay's shared beginning
    assert "461 more tokens" in prompts


def test_the_json_is_the_report(folder: Path) -> None:
    text = (folder / "report.json").read_text(encoding="utf-8")
    assert ValidationReport.model_validate_json(text) == full_report()
    assert text.startswith('{\n "model_digest"')


def test_plots_show_something(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "plots").iterdir()) == PLOTS
    for name in PLOTS:
        with Image.open(io.BytesIO((folder / "plots" / name).read_bytes())) as image:
            image.load()
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert image.width > 500
        assert tuple(pixels[0]) == (255, 255, 255)
        drawn = (pixels != 255).any(axis=1).mean()
        assert 0.02 < drawn < 0.6
        inked = [np.abs(pixels.astype(int) - colour).max(axis=1) < 8 for colour in (BLUE, RED)]
        assert np.sum(inked) > 200


def test_the_same_report_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_report(full_report(), full_recipe(), exported_model(tmp_path), tmp_path)
    names = ["report.html", "report.json", *(f"plots/{name}" for name in PLOTS)]
    assert {name: (tmp_path / name).read_bytes() for name in names} == {
        name: (folder / name).read_bytes() for name in names
    }


def test_a_passed_report_says_so(tmp_path: Path) -> None:
    page = written(full_report(failed=False), tmp_path)
    assert f"✓ PASSEDAll {len(full_report().verdicts)} gates passed. Not judged: 1." in page.text[""]
    assert "is not here" not in page.words
    assert "faults" not in page.text


def test_without_a_reference_the_page_says_that_nothing_was_compared(tmp_path: Path) -> None:
    page = written(report_without_reference(), tmp_path)
    assert "Compared with nothing." in page.text[""]
    assert re.search(r"not judged\s+text_kl_mean[^○]*not measured\s[^○]*without a verdict", page.text["verdicts"])
    assert "nothing: validation.reference is none" in page.text["provenance"]
    assert "fidelity" not in page.text
    assert "Source model" not in page.text["prompts"]
    assert page.text["prompts"].count("not compared") == 16
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["latency.png"]


def test_a_report_of_one_prompt_and_no_curve_is_a_page_too(tmp_path: Path) -> None:
    page = written(tiny_report(), tmp_path)
    assert "1 of 1 gates failed: tpot_ms is not measured, limit at most 10 ms. Not judged: " in page.text[""]
    assert "plots" not in page.text
    assert list((tmp_path / "plots").iterdir()) == []
    assert "Load, no cache" in page.text["performance"]


def test_no_verdict_is_no_praise(tmp_path: Path) -> None:
    page = written(full_report().model_copy(update={"verdicts": ()}), tmp_path)
    on_cpu = BUILT_IN_GATES.keys() - {"device_kl_mean"}
    assert f"Nothing was judged. Not judged: {len(on_cpu) + 1}." in page.text[""]
    assert page.text["verdicts"].count("without a verdict") == len(on_cpu)


def test_curves_of_a_broken_or_an_equal_model_are_drawn(tmp_path: Path) -> None:
    report = full_report()
    nan = report.kl_by_position[0].model_copy(update={"mean": float("nan")})
    update = {"kl_by_position": (nan,), "kl_histogram": ((1e-6, 1.5e-6, 8190),)}
    written(report.model_copy(update=update), tmp_path)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        name for name in PLOTS if name != "kl-by-position.png"
    ]


def test_a_histogram_of_answers_names_their_figures(tmp_path: Path) -> None:
    report = full_report()
    metrics = {name: value for name, value in report.metrics.items() if not name.startswith("text_")}
    page = written(report.model_copy(update={"metrics": metrics}), tmp_path)
    assert f"mean {metrics['answers_kl_mean']:.3g}" in page.text["plots"]


def test_many_prompts_are_drawn_as_the_earliest_to_part(tmp_path: Path) -> None:
    report = full_report()
    many = tuple(
        result.model_copy(update={"id": f"{result.id}-{turn}"}) for turn in range(4) for result in report.prompts
    )
    page = written(report.model_copy(update={"prompts": many}), tmp_path)
    assert "40 of 64 answers, those that part first" in page.text["plots"]
