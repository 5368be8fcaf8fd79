"""Figures as inline SVG that follows a page's colours, and as PNG."""

import io
import re
import threading
import warnings
import zlib
from xml.etree import ElementTree

from jaxvision.report.theme import VARIABLES, clean

_SETTINGS = threading.Lock()
_COLOR = re.compile("|".join(VARIABLES))
_REFERENCE = re.compile(r"^#(.+)$|^url\(#(.+)\)$")


def to_svg(figure: "matplotlib.figure.Figure", label: str = "") -> str:
    """Returns an `<svg>` element for a page's body; `label` is what a screen reader says of it.

    It fills its container's width. Text stays text, set in the page's font (so names in any script
    show); colours of the theme become CSS variables, with the light ones where a page has none. The
    same figure always gives the same string.
    """
    with _SETTINGS, warnings.catch_warnings():
        import matplotlib

        # Only the layout uses matplotlib's own font: the browser has a glyph where it has none.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # matplotlib reads this setting while it draws and offers no argument for it.
        before = matplotlib.rcParams["svg.fonttype"]
        matplotlib.rcParams["svg.fonttype"] = "none"
        try:
            buffer = io.BytesIO()
            # "tight": the layout misjudges long names beside a square matrix, and clips them.
            figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight")
        finally:
            matplotlib.rcParams["svg.fonttype"] = before
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    for element in root.iter():
        if "style" in element.attrib:
            element.attrib["style"] = _themed(element.attrib["style"])
    _rename(root, "f")
    # Ids must differ between the figures of one page, so they carry a checksum of what is shown.
    _rename(root, f"f{zlib.crc32(ElementTree.tostring(root)):08x}-")
    width = root.attrib["viewBox"].split()[2]
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": clean(label),
        "style": f"max-width: {width}pt; stroke-linejoin: round; stroke-linecap: butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def to_png(figure: "matplotlib.figure.Figure", dpi: int = 144) -> bytes:
    """Returns the figure as a PNG file on white, for other programs than the report's page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def _strip(root: ElementTree.Element) -> None:
    """Takes out the namespaces, metadata and style sheet, which would act on the page around it."""
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag not in ("text", "tspan"):
            element.text = None
        for name in list(element.attrib):
            element.attrib[name.rpartition("}")[2]] = element.attrib.pop(name)
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Numbers the ids that are referred to, in the order of the document, and drops the others."""
    references = {
        match[1] or match[2]
        for element in root.iter()
        for value in element.attrib.values()
        if (match := _REFERENCE.match(value))
    }
    names = {}
    for element in root.iter():
        identity = element.attrib.pop("id", None)
        if identity in references:
            element.attrib["id"] = names[identity] = f"{prefix}{len(names)}"
    for element in root.iter():
        for name, value in element.attrib.items():
            if match := _REFERENCE.match(value):
                old = match[1] or match[2]
                element.attrib[name] = value.replace(old, names[old])


def _themed(style: str) -> str:
    rules = (rule.strip() for rule in style.split(";"))
    kept = "; ".join(rule for rule in rules if rule and not rule.startswith("font-family"))
    return _COLOR.sub(lambda match: f"var({VARIABLES[match[0]]}, {match[0]})", kept)
