"""The page itself: well-formed, self-contained, escaped, and written whole or not at all."""

import resource
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.report import Section, html, write_page

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Parses a document and fails where a tag is left open or closed out of order."""

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.ids, self.texts = [], [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = '<script>alert("1")</script> & \udcff\x00 </td>'


def hostile_page():
    image = np.zeros((2, 5, 7, 3), np.uint8)
    body = (
        html.paragraph(HOSTILE)
        + html.notice(HOSTILE)
        + html.headlines([html.Headline(HOSTILE, HOSTILE, HOSTILE)])
        + html.table((HOSTILE, "b"), [(HOSTILE, 1)])
        + html.details(HOSTILE, html.table((), []))
        + html.plot("<svg></svg>", HOSTILE)
        + html.pictures(image, [[HOSTILE], ["x", "y"]], [True, False])
    )
    return [Section(HOSTILE, body), Section("Second", "")]


def test_all_text_is_escaped_and_the_page_is_well_formed(tmp_path):
    path = write_page(tmp_path / "new" / "page.html", HOSTILE, hostile_page())
    page = Page(path.read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    shown = '<script>alert("1")</script> & �� </td>'
    # Title, heading, link, section, and once for each of the ten places in the body.
    assert sum(text == shown for text in page.texts) == 4 + 10
    (image,) = (attrs for tag, attrs in page.tags if tag == "img" and attrs["alt"] == shown)
    assert image["src"].startswith("data:image/png;base64,")
    assert [attrs["class"] for tag, attrs in page.tags if tag == "figure"][1:] == ["right", "wrong"]


def test_numbers_and_words_are_told_apart():
    cells = ElementTree.fromstring(
        html.table(("a", "b", "c", "d"), [("1,024", "88.1 %", "3 cats", 1e-05)])
    ).iter("td")
    assert [cell.get("class") for cell in cells] == ["number", "number", "words", "number"]


def test_a_page_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path):
    path = write_page(tmp_path / "page.html", "old", [Section("a", "b")])
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*page\.html: File too large") as error:
            write_page(path, "new", [Section("a", "b" * 50_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_before_the_rename_leaves_the_old_page(tmp_path, monkeypatch):
    path = write_page(tmp_path / "page.html", "old", [])
    before = path.read_bytes()

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_page(path, "new", [])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*report\.html: "):
        write_page(tmp_path / "file" / "report.html", "t", [])


def test_the_page_can_be_read_by_others(tmp_path):
    path = write_page(tmp_path / "page.html", "t", [])
    (tmp_path / "usual").write_text("")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
