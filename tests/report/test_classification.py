"""report.html of a classification run: read back, for runs that went well, badly, or nowhere."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.report import write_classification_report

NAN = float("nan")
NAMES = ["T-shirt/top", "<b>Coat</b>", "$x$ & y"]
RECORDS = [
    {"step": 50, "epoch": 0.5, "train/loss": 1.5, "train/examples_per_second": 1000.0},
    {"step": 100, "epoch": 1, "val/loss": 0.75, "val/accuracy": 0.875},
    {"step": 150, "epoch": 1.5, "train/loss": 0.5, "train/examples_per_second": 3000.0},
    {"step": 200, "epoch": 2, "val/loss": 0.8125, "val/accuracy": 0.8125},
]
PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9], [0.05, 0.95, 0.0], [0.6, 0.2, 0.2]]
)
LABELS = np.array([0, 1, 2, 0, 2])
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)


class Texts(HTMLParser):
    """Collects a page's text and its pictures: (frame, caption) in their order."""

    def __init__(self, document):
        super().__init__()
        self.words, self.pictures, self.ids = [], [], []
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "figure":
            self.frame = attrs["class"]
        if tag == "img":
            self.pictures.append((self.frame, attrs["alt"]))

    def handle_data(self, data):
        self.words.append(data)


def write(folder, **changes):
    arguments = {
        "title": "A run",
        "config": {
            "model": "lenet",
            "optim": {"name": "sgd", "rate": 1234.56789},
            "data_source": "embedded",
        },
        "records": RECORDS,
        "labels": LABELS,
        "probabilities": PROBABILITIES,
        "images": IMAGES,
        "class_names": NAMES,
        "throughput": None,
    }
    path = write_classification_report(folder, **arguments | changes)
    assert path == folder / "report.html"
    document = path.read_text("utf-8")
    assert not re.search(r"https?://|<script|<link|@import|src=\"(?!data:)", document)
    page = Texts(document)
    assert len(page.ids) == len(set(page.ids))
    return page


def after(page, word, count=1):
    """The texts that follow the first text equal to `word`."""
    place = page.words.index(word) + 1
    return page.words[place : place + count]


def test_a_run_that_went_well(tmp_path):
    page = write(tmp_path, notes=["first <note>"])
    assert after(page, "Final validation accuracy", 2) == ["81.25 %", "step 200, epoch 2"]
    assert after(page, "Best validation accuracy", 2) == ["87.50 %", "step 100, epoch 1"]
    assert after(page, "Final validation loss", 2) == ["0.8125", "step 200, epoch 2"]
    assert after(page, "Best validation loss", 2) == ["0.7500", "step 100, epoch 1"]
    assert after(page, "Epochs") == ["2"]
    assert after(page, "Steps") == ["200"]
    assert after(page, "Data") == ["embedded"]
    assert after(page, "Training examples a second") == ["2,000"]
    assert after(page, "optim.name") == ["sgd"]
    assert after(page, "optim.rate") == ["1234.56789"]
    assert "first <note>" in page.words
    assert "3 of 5 examples are right (60.00 %)." in page.words
    # Class 1: two predicted, one of them right; its one example is right.
    row = page.words.index("Examples")
    place = page.words.index("<b>Coat</b>", row) + 1
    assert page.words[place : place + 4] == ["50.0 %", "100.0 %", "66.7 %", "1"]
    assert page.pictures == [
        ("wrong", "✗ <b>Coat</b>, 95.0 % sure, true: T-shirt/top"),
        ("wrong", "✗ T-shirt/top, 60.0 % sure, true: $x$ & y"),
        ("right", "✓ T-shirt/top, 70.0 % sure"),
        ("right", "✓ <b>Coat</b>, 80.0 % sure"),
        ("right", "✓ $x$ & y, 90.0 % sure"),
    ]


def test_given_throughput_adds_to_the_records_and_replaces_them(tmp_path):
    page = write(tmp_path, throughput={"pictures a second": 10.0})
    assert after(page, "Training examples a second") == ["2,000"]
    assert after(page, "pictures a second") == ["10"]
    speed = {"examples_per_second": 5612.3, "ms_per_step": 0.7128, "batches kept": "all"}
    page = write(tmp_path, throughput=speed)
    assert after(page, "Training examples a second") == ["5,612"]
    assert after(page, "Time a step (ms)") == ["0.7128"]
    assert after(page, "batches kept") == ["all"]


def test_a_diverged_run_says_so(tmp_path):
    records = [*RECORDS, {"step": 210, "train/loss": NAN}, {"step": 220, "val/loss": None}]
    probabilities = PROBABILITIES.copy()
    probabilities[:2] = NAN
    page = write(tmp_path, records=records, probabilities=probabilities)
    assert "The run diverged: train/loss was first not finite at step 210." in page.words
    assert after(page, "Final validation loss", 2) == ["not finite", "step 220"]
    assert after(page, "Best validation loss") == ["0.7500"]
    assert "1 of 5 examples are right (20.00 %)." in page.words
    assert any(word.startswith("2 of 5 examples have probabilities") for word in page.words)
    assert [frame for frame, _ in page.pictures] == ["wrong", "wrong", "right"]


def test_nothing_finite_at_all(tmp_path):
    records = [{"step": 1, "epoch": None, "train/loss": None, "val/accuracy": NAN}]
    page = write(tmp_path, records=records, probabilities=np.full((5, 3), NAN))
    assert after(page, "Final validation accuracy") == ["not finite"]
    assert "0 of 5 examples are right (0.00 %)." in page.words
    assert page.words.count("There is no finite prediction.") == 2
    assert "No example is wrong." not in page.words
    assert page.pictures == []


def test_no_records_and_no_validation(tmp_path):
    page = write(tmp_path, records=[], labels=None, probabilities=None, images=None, config={})
    assert "Nothing was recorded: the run stopped before its first record." in page.words
    assert "No curves were recorded." in page.words
    page = write(tmp_path, records=RECORDS[:1], labels=None, probabilities=None, images=None)
    assert "No validation was recorded." in page.words
    assert "Predictions by class" not in page.words
    page = write(tmp_path, labels=LABELS[:0], probabilities=PROBABILITIES[:0], images=IMAGES[:0])
    assert "No example was evaluated." in page.words


def test_one_class_without_mistakes_or_pictures(tmp_path):
    one = {"class_names": ["all"], "labels": np.zeros(3, int), "probabilities": np.ones((3, 1))}
    page = write(tmp_path, images=IMAGES[:3], **one)
    assert "No example is wrong." in page.words
    assert "Most frequent mistakes" not in page.words
    assert len(page.pictures) == 3
    assert write(tmp_path, images=None, **one).pictures == []


def test_a_hundred_classes_fold_their_table_and_limit_the_pictures(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(100), 400).astype(np.float32)
    page = write(
        tmp_path,
        class_names=[f"class {i}" for i in range(100)],
        labels=rng.integers(0, 100, 400).astype(np.uint8),
        probabilities=probabilities,
        images=np.zeros((400, 4, 4, 3), np.uint8),
    )
    assert "Scores of all 100 classes" in page.words
    wrong = [caption for frame, caption in page.pictures if frame == "wrong"]
    sure = [float(re.search(r"([\d.]+) % sure", caption)[1]) for caption in wrong]
    assert len(sure) == 24
    assert sure == sorted(sure, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS[:3]}, r"expected labels \[n\] and probabilities \[n, 3\]"),
        ({"class_names": NAMES[:2]}, r"probabilities \[n, 2\] for 2 class names, got \[5\]"),
        ({"labels": LABELS - 1}, "expected labels from 0 to 2, got -1 to 1"),
        ({"images": IMAGES[:4]}, "expected one picture for each of 5 labels, got 4"),
        ({"images": IMAGES[..., 0]}, "expected uint8 pictures"),
    ],
)
def test_inputs_that_do_not_fit_are_named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_to_write_leaves_the_old_report(tmp_path, monkeypatch):
    write(tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*report\.html: No space left on device"):
        write(tmp_path, title="Another")
    assert (tmp_path / "report.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
