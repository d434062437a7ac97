"""Matplotlib's SVG, made fit to stand inside a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree


def inline(drawing: str, *, title: str, colours: Mapping[str, str]) -> str:
    """Return an SVG element in the page's colours and font.

    Style attributes become presentation attributes, since the page's security policy forbids them; matplotlib's style
    sheet, which would reach over the whole page, goes, and so do the ids that nothing refers to.
    """
    root = ElementTree.fromstring(drawing)  # noqa: S314 - drawn by us
    used = set(re.findall(r"#(\w+)", drawing))
    for element in root.iter():
        for child in [child for child in element if child.tag.endswith("}style")]:
            element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        declarations = (part.partition(":") for part in attributes.pop("style", "").split(";"))
        attributes |= {name.strip(): value.strip() for name, _, value in declarations if value}
        attributes.pop("font-family", None)
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib = {name: colours.get(value, value) for name, value in attributes.items()}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")
