"""metrics.jsonl as kills, resumes and divergence leave it."""

import json

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.report import read_records
from jaxvision.report.records import best_point, epochs, first_not_finite, last_point, series

LINE = '{"step": 1, "train/loss": 0.5}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_half_written_last_line_is_ignored_wherever_it_was_cut(path):
    last = '{"step": 2, "train/loss": 0.25, "name": "é"}'.encode()
    for cut in range(len(last)):
        path.write_bytes(LINE.encode() + last[:cut])
        assert read_records(path) == [{"step": 1, "train/loss": 0.5}]
    path.write_bytes(LINE.encode() + last)
    assert len(read_records(path)) == 2


def test_nan_null_blank_lines_and_an_empty_file(path):
    path.write_text(LINE + "\n" + '{"step": 2, "train/loss": NaN, "val/loss": null}\n')
    records = read_records(path)
    assert np.isnan(records[1]["train/loss"])
    assert records[1]["val/loss"] is None
    path.write_text("")
    assert read_records(path) == []


@pytest.mark.parametrize("damage", [b'{"step": 2', b"[1, 2]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_other_damage_names_the_file_and_the_line(path, damage):
    path.write_bytes(LINE.encode() + damage + b"\n" + LINE.encode())
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: expected a JSON object") as error:
        read_records(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_a_user_error(path):
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl: No such file"):
        read_records(path)


def test_series_are_in_order_and_the_later_record_of_a_step_wins():
    records = [
        {"step": 20, "a": 2.0},
        {"step": 10, "a": 1.0},
        {"step": 20, "a": 3.0},
        {"step": 30, "a": None},
        {"step": 40, "b": 9.0},
        {"a": 7.0},
    ]
    x, values = series(records, "a")
    np.testing.assert_array_equal(x, [10, 20, 30])
    np.testing.assert_array_equal(values, [1, 3, np.nan])
    assert series([], "a")[0].shape == (0,)


def test_series_fall_back_to_epochs():
    x, values = series([{"epoch": 2, "a": 1}, {"epoch": 1, "a": 5}], "a")
    assert (x.tolist(), values.tolist()) == ([1.0, 2.0], [5.0, 1.0])


def test_last_best_and_first_not_finite():
    values = [0.5, 0.25, 0.25, float("inf"), float("nan")]
    records = [{"step": i, "v": value} for i, value in enumerate(values)]
    assert best_point(records, "v", largest=False) == (2, 0.25)  # of equal ones the last
    assert best_point(records, "v", largest=True) == (0, 0.5)
    assert last_point(records, "v").x == 4
    assert np.isnan(last_point(records, "v").value)
    records.append({"step": 2, "w": None})
    assert first_not_finite(records, ["v"]) == ("v", 3)
    assert first_not_finite(records, ["v", "w"]) == ("w", 2)
    assert first_not_finite(records[:2], ["v", "w"]) is None
    assert last_point(records, "absent") is best_point(records, "w", largest=True) is None


def test_epochs_are_placed_at_their_last_validation():
    records = [
        {"step": 5, "epoch": 1, "val/loss": 1.0},
        {"step": 10, "epoch": 1, "val/loss": 1.0},
        {"step": 12, "epoch": 1.2, "val/loss": 1.0},
        {"step": 15, "epoch": 2, "train/loss": 1.0},
        {"step": 20, "epoch": 2, "val/loss": 1.0},
    ]
    places, numbers = epochs(json.loads(json.dumps(records)))
    assert (places.tolist(), numbers.tolist()) == ([10.0, 20.0], [1.0, 2.0])
