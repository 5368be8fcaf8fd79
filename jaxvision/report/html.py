"""A page in one file: no script, no address outside it, light or dark as the reader's system is.

The functions return HTML and escape all text they are given. What is HTML already, because one of
them made it, is called `body_html` or `svg`.
"""

import base64
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from jaxvision.errors import UserError
from jaxvision.report import theme
from jaxvision.report.draw import encode_drawing, encode_picture

_NUMBER = re.compile(r"([-+]?[\d.,]+(e[-+]?\d+)?( %)?|-)$")


@dataclass(frozen=True)
class Section:
    """One heading of the page and what stands under it."""

    title: str
    body_html: str


@dataclass(frozen=True)
class Headline:
    """One headline number: what it is, its value, and a remark in small print."""

    name: str
    value: str
    remark: str = ""


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Writes the page and returns its path, making its folder where it is missing.

    The file appears whole or not at all: a failure leaves the one that was there, and is a
    `UserError`.
    """
    path = Path(path)
    page = render_page(title, sections).encode("utf-8", errors="replace")
    # In the same folder, because a rename across file systems is not atomic.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; nothing was changed: make the folder "
            "writable, free some space, or choose another folder"
        ) from error
    return path


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Returns the whole document."""
    links, bodies = [], []
    for number, section in enumerate(sections, start=1):
        heading = text(section.title)
        links.append(f'<a href="#s{number}">{heading}</a>')
        bodies.append(f'<section id="s{number}"><h2>{heading}</h2>{section.body_html}</section>')
    contents = f"<nav>{' '.join(links)}</nav>" if len(links) > 1 else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{theme.STYLE_SHEET}</style></head>\n"
        f"<body><main><h1>{text(title)}</h1>{contents}\n"
        + "\n".join(bodies)
        + "</main></body></html>\n"
    )


def text(value: object) -> str:
    """Returns `value` as escaped text, safe inside an element and inside a quoted attribute.

    >>> text('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    return escape(theme.clean(value, longest=2000))


def paragraph(value: object) -> str:
    return f"<p>{text(value)}</p>"


def notice(value: object) -> str:
    """Returns a paragraph that can't be overlooked."""
    return f'<p class="notice">{text(value)}</p>'


def headlines(items: Iterable[Headline]) -> str:
    """Returns the headline numbers, side by side as far as there is room."""
    tiles = (
        f"<div><dt>{text(item.name)}</dt><dd{_kind(item.value)}>{text(item.value)}</dd>"
        + (f"<dd>{text(item.remark)}</dd>" if item.remark else "")
        + "</div>"
        for item in items
    )
    return f'<dl class="headlines">{"".join(tiles)}</dl>'


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table; numbers, also with a % behind, stand on the right.

    An empty `header` leaves the head out and makes it a list of names and values, all on the left.
    """
    rows = [tuple(row) for row in rows]
    # A heading stands over its numbers, so it is aligned by what the first row holds.
    below = rows[0] if rows else header
    head = "".join(
        f'<th scope="col"{_kind(cell)}>{text(name)}</th>'
        for name, cell in zip(header, below, strict=False)
    )
    body = "".join(
        f"<tr>{''.join(f'<td{_kind(cell)}>{text(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    opening = f"<table><thead><tr>{head}</tr></thead>" if header else '<table class="list">'
    return f'<div class="scroll">{opening}<tbody>{body}</tbody></table></div>'


def _kind(value: object) -> str:
    """Returns the class by which the style sheet tells numbers from words."""
    kind = "number" if _NUMBER.match(str(value)) else "words"
    return f' class="{kind}"'


def details(summary: object, body_html: str) -> str:
    """Returns what the reader opens on demand."""
    return f"<details><summary>{text(summary)}</summary>{body_html}</details>"


def plot(svg: str, caption: object = "", *, wide: bool = False) -> str:
    """Returns a figure around an inline SVG; a `wide` one scrolls where the window is narrow."""
    words = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    kind = "plot wide" if wide else "plot"
    return f'<figure class="{kind}"><div class="scroll">{svg}</div>{words}</figure>'


def side_by_side(bodies_html: Iterable[str]) -> str:
    """Returns the bodies in as many columns as the window has room for."""
    return f'<div class="columns">{"".join(bodies_html)}</div>'


def pictures(
    images: Sequence[UInt8[np.ndarray, "h w c"]] | UInt8[np.ndarray, "n h w c"],
    captions: Sequence[Sequence[str]],
    is_right: Sequence[bool] | np.ndarray,
) -> str:
    """Returns pictures over their captions' lines, framed green where right, red where wrong."""
    items = []
    for image, lines, right in zip(images, captions, is_right, strict=True):
        kind, data = encode_picture(image)
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        words = "<br>".join(text(line) for line in lines)
        items.append(
            f'<figure class="{"right" if right else "wrong"}">'
            f'<img src="{source}" alt="{text(", ".join(lines))}">'
            f"<figcaption>{words}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(items)}</div>'


def drawings(
    images: Sequence[UInt8[np.ndarray, "_ _ _"]],
    captions: Sequence[Sequence[str]],
    *,
    size: Literal["small", "medium", "wide"] = "medium",
) -> str:
    """Returns pictures with something drawn on them, about four, two or one of them in a row."""
    items = []
    for image, lines in zip(images, captions, strict=True):
        kind, data = encode_drawing(image)
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        words = "<br>".join(text(line) for line in lines)
        items.append(
            f'<figure class="drawing"><img src="{source}" alt="{text(", ".join(lines))}">'
            f"<figcaption>{words}</figcaption></figure>"
        )
    return f'<div class="drawings {size}">{"".join(items)}</div>'
