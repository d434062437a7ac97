from __future__ import annotations

import math
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Export
from tasks.errors import ExportError
from tasks.export.ir import read_weights
from tests.tiny_exports import job, run_jobs

EXPORTS = {
    "sym": Export(weight_format="int4", sym=True, group_size=64, ratio=0.6),
    "asym": Export(weight_format="int4", group_size=32),
    "channel": Export(weight_format="int4", sym=True, group_size=-1, backup_precision="int8_sym"),
    "none": Export(weight_format="int4", sym=True, group_size=64, ratio=0.6, backup_precision="none"),
    "ignore": Export(weight_format="int4", sym=True, group_size=64, group_size_fallback="ignore"),
    "adjust": Export(weight_format="int4", sym=True, group_size=64, group_size_fallback="adjust"),
    "int8": Export(weight_format="int8"),
    "fp16": Export(weight_format="fp16"),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied Llama whose down_proj (224 input channels) is no multiple of 64."""
    folder = tmp_path_factory.mktemp("ir")
    chosen = {name: EXPORTS[name] for name in ("sym", "asym", "channel", "none", "ignore", "adjust", "int8", "fp16")}
    failures = run_jobs(
        folder,
        [
            job("Llama", folder / "odd", {name: chosen[name] for name in ("ignore", "adjust")}, intermediate_size=224),
            job("Llama", folder / "even", {n: e for n, e in chosen.items() if n not in ("ignore", "adjust")}),
        ],
    )
    assert failures == {}
    return folder


# Hand-computed: embedding and output layer have 2 * 512 * 128 weights; each of 2 layers has q, o 128 * 128, k, v
# 64 * 128, gate, up, down 128 * 256 (224 in "odd").
OUTER = 131_072
INNER = 2 * (2 * 16_384 + 2 * 8_192 + 3 * 32_768)
INNER_ODD = 2 * (2 * 16_384 + 2 * 8_192 + 3 * 28_672)
DOWN_ODD = 2 * 28_672


def test_int4_asym_and_its_backup(exports: Path) -> None:
    weights = read_weights(exports / "even" / "asym")
    assert weights.share_by_type == pytest.approx(
        {"int4_asym": INNER / (INNER + OUTER), "int8_asym": OUTER / (INNER + OUTER)}
    )
    assert weights.group_sizes == {"int4_asym": (32,), "int8_asym": (-1,)}
    assert weights.ignored_layers == ()
    assert weights.size_bytes == (exports / "even" / "asym" / "openvino_model.bin").stat().st_size


def test_one_scale_a_channel_is_minus_one(exports: Path) -> None:
    weights = read_weights(exports / "even" / "channel")
    assert weights.share_by_type == pytest.approx(
        {"int4_sym": INNER / (INNER + OUTER), "int8_sym": OUTER / (INNER + OUTER)}
    )
    assert weights.group_sizes == {"int4_sym": (-1,), "int8_sym": (-1,)}


def test_uncompressed_backup_is_listed_by_name(exports: Path) -> None:
    weights = read_weights(exports / "even" / "none")
    assert set(weights.share_by_type) == {"int4_sym", "bf16"}
    assert any("lm_head" in name for name in weights.ignored_layers)
    assert any("embed_tokens" in name for name in weights.ignored_layers)
    assert not any("norm" in name or "rotary" in name for name in weights.ignored_layers)


def test_ignored_layers_are_the_ones_that_do_not_fit(exports: Path) -> None:
    weights = read_weights(exports / "odd" / "ignore")
    assert weights.share_by_type["bf16"] == pytest.approx(DOWN_ODD / (INNER_ODD + OUTER))
    assert [re.findall(r"layers\.(\d)\.mlp\.down_proj", name) for name in weights.ignored_layers] == [["0"], ["1"]]
    assert weights.settings["advanced_parameters.group_size_fallback_mode"] == "ignore"


def test_adjusted_groups_are_found(exports: Path) -> None:
    weights = read_weights(exports / "odd" / "adjust")
    assert weights.group_sizes == {"int4_sym": (32, 64), "int8_asym": (-1,)}
    assert weights.ignored_layers == ()


def test_int8_has_one_type(exports: Path) -> None:
    weights = read_weights(exports / "even" / "int8")
    assert weights.share_by_type == {"int8_asym": 1.0}
    assert weights.settings["mode"] == "int8_asym"
    assert weights.bit_mix == "int8_asym 100 %"


def test_floating_export_ignores_nothing(exports: Path) -> None:
    weights = read_weights(exports / "even" / "fp16")
    assert weights.share_by_type == {"fp16": 1.0}
    assert (weights.group_sizes, weights.ignored_layers, weights.settings) == ({}, (), {})


def test_settings_are_those_of_the_export(exports: Path) -> None:
    settings = read_weights(exports / "even" / "sym").settings
    expected = {"mode": "int4_sym", "group_size": "64", "ratio": "0.6", "all_layers": "False", "awq": "False"}
    assert expected.items() <= settings.items()
    assert settings["backup_mode"] == "int8_asym"


@pytest.mark.parametrize("name", ["even/sym", "even/asym", "even/channel", "even/none", "odd/ignore", "odd/adjust"])
def test_agrees_with_openvino(exports: Path, name: str) -> None:
    """The same counts from OpenVINO's own reader, which knows nothing of our tracing: large constants by type."""
    import openvino

    names = {"i4": "int4_sym", "u4": "int4_asym", "i8": "int8_sym", "u8": "int8_asym", "bf16": "bf16"}
    counts: dict[str, int] = defaultdict(int)
    for node in openvino.Core().read_model(exports / name / "openvino_model.xml").get_ops():
        shape = tuple(node.output(0).shape) if node.get_type_name() == "Constant" else ()
        side_data = node.get_friendly_name().endswith(("/scale", "/zero_point"))
        if len(shape) > 1 and shape[0] > 1 and not side_data:
            counts[names[node.get_element_type().get_type_name()]] += math.prod(shape)
    total = sum(counts.values())
    assert read_weights(exports / name).share_by_type == pytest.approx({n: c / total for n, c in counts.items()})


@pytest.fixture
def copy(exports: Path, tmp_path: Path) -> Path:
    for suffix in ("xml", "bin"):
        shutil.copy(exports / "even" / "asym" / f"openvino_model.{suffix}", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin"])
def test_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ExportError, match=re.escape(str(copy / name))):
        read_weights(copy)


def test_cut_off_weights_are_refused(copy: Path) -> None:
    data = copy / "openvino_model.bin"
    size = data.stat().st_size
    with data.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(ExportError, match=f"cut off: it has {size - 1} bytes, its model needs {size}"):
        read_weights(copy)


def test_cut_off_xml_is_refused(copy: Path) -> None:
    xml = copy / "openvino_model.xml"
    xml.write_bytes(xml.read_bytes()[:-200])
    with pytest.raises(ExportError, match="is not an OpenVINO model"):
        read_weights(copy)


def test_model_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").touch()
    (tmp_path / "openvino_model.xml").write_text("<net><layers/><edges/></net>", encoding="utf-8")
    with pytest.raises(ExportError, match="has no weights"):
        read_weights(tmp_path)


CIRCLE = b"""<net><layers><layer id="0" name="a" type="MatMul"/><layer id="1" name="b" type="Convert"/></layers>
<edges><edge from-layer="1" to-layer="0" to-port="1"/><edge from-layer="1" to-layer="1" to-port="0"/></edges></net>"""


def test_circular_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").touch()
    (tmp_path / "openvino_model.xml").write_bytes(CIRCLE)
    with pytest.raises(ExportError, match="is not an OpenVINO model"):
        read_weights(tmp_path)


PIECES = st.sampled_from(
    [
        b"<net>", b"</net>", b"<layers>", b"</layers>", b"<edges>", b"</edges>", b"<edge/>", b"</layer>", b"<layer/>",
        b'<layer id="0" name="m" type="MatMul">', b'<layer id="1" name="c" type="Const">',
        b'<data element_type="i4" shape="2,2" offset="0" size="2"/>', b'<data shape="x"/>', b"\xff", b"&x;",
        b'<edge from-layer="1" to-layer="0" to-port="1"/>', b'<edge from-layer="9" to-layer="0" to-port="0"/>',
    ]
)  # fmt: skip


@given(pieces=st.lists(PIECES, max_size=12))
def test_garbage_raises_our_error_or_is_read(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    (folder / "openvino_model.bin").write_bytes(b"\0" * 8)
    (folder / "openvino_model.xml").write_bytes(b"".join(pieces))
    try:
        weights = read_weights(folder)
    except ExportError as error:
        assert str(folder) in str(error)
    else:
        assert sum(weights.share_by_type.values()) == pytest.approx(1)
