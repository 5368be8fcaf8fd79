"""experiments/selective_search.py end to end, tiny, with its files read back; and its benchmark."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxvision.data.grouping import bin_pixels, describe_regions, group_regions
from jaxvision.data.selective_search import selective_search
from jaxvision.errors import UserError

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "proposals.py"


@pytest.fixture(scope="module")
def search(experiment):
    return experiment("selective_search")


@pytest.fixture(scope="module")
def quick_run(search, data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("selective_search") / "run"
    config = search.Config(
        quick=True,
        garments="embedded",
        modes=("single", "fast"),
        data_dir=data_dir,
        run_dir=run_dir,
    )
    return run_dir, search.main(config)


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (5, 5, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return np.clip(tiles + rng.normal(0, 4, tiles.shape), 0, 255).astype(np.uint8)


def test_a_quick_run_writes_its_results_and_one_page(quick_run):
    run_dir, results = quick_run
    stored = json.loads((run_dir / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert [title[:2] for title in stored] == [f"{n}." for n in range(1, 6)]
    page = (run_dir / "report.html").read_text()
    for title in stored:
        assert f"<h2>{title}</h2>" in page.replace("&#x27;", "'")
    assert page.count("<svg") == 3 + 1
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # nothing outside the file
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["pictures"], config["size"]) == (4, 128)
    assert config["objects"] > 4


def test_a_quick_run_finds_what_it_must(quick_run):
    _, results = quick_run
    covered, alone, timed, again, grouped = results.values()
    assert list(covered) == ["single", "fast", "OpenCV, fast", "OpenCV, our settings, fast"]
    for scores in (*covered.values(), *alone.values()):
        recalls = [scores[count]["recall_50"] for count in ("10", "100", "3000")]
        assert recalls == sorted(recalls)
        for score in scores.values():
            assert 0 <= score["recall_70"] <= score["recall_50"] <= 1
    # Four scenes: nearly every garment has its box, in many of one grouping and more of eight.
    assert covered["fast"]["1000"]["recall_50"] > 0.85
    assert covered["fast"]["3000"]["boxes"] > 2 * covered["single"]["3000"]["boxes"]
    # The same starting regions and similarities, so about as many boxes that cover as well.
    ours, theirs = (covered[name]["3000"] for name in ("fast", "OpenCV, our settings, fast"))
    assert ours["boxes"] == pytest.approx(theirs["boxes"], rel=0.1)
    assert ours["mabo"] == pytest.approx(theirs["mabo"], abs=0.05)
    assert len(alone) == 8
    for sides in timed.values():
        assert list(sides) == ["jaxvision", "OpenCV", "OpenCV, our settings"]
        assert all(0 < seconds < 10 for seconds in sides.values())
    assert again["jaxvision"] == again["pictures"] == 1
    (numbers,) = grouped.values()
    assert numbers["regions"] > 4


def test_opencv_with_our_settings_groups_the_same_regions(experiment, picture):
    methods = experiment("selective_search_methods")
    ours = {tuple(box) for box in selective_search(picture, mode="single").tolist()}
    theirs = {tuple(box) for box in methods.with_our_settings(picture, "single").tolist()}
    assert len(ours & theirs) > 0.5 * len(ours | theirs)
    whole = (0, 0, 40, 40)
    assert whole in ours & theirs
    assert whole in {tuple(box) for box in methods.as_it_comes(picture, "fast").tolist()}


def test_time_is_taken_in_turn(experiment):
    methods = experiment("selective_search_methods")
    calls = []
    sides = {name: lambda image, name=name: calls.append((name, int(image))) for name in "ab"}
    seconds = methods.time_in_turn(sides, [np.int64(0), np.int64(1)], repeats=2)
    assert calls == [
        ("a", 0),
        ("b", 0),
        *[(side, i) for i in (0, 1) for _ in "xx" for side in "ab"],
    ]
    assert {name: each.shape for name, each in seconds.items()} == {"a": (2,), "b": (2,)}


def test_regions_that_become_one_have_neighbouring_colors(experiment):
    drawing = experiment("selective_search_drawing")
    labels = np.arange(8, dtype=np.int32)[None]
    values = np.array([0, 1, 200, 201, 90, 91, 255, 254], np.uint8)[None, :, None]
    (hierarchy,) = group_regions([describe_regions(labels, bin_pixels(values))], ["C"])
    colors = drawing.region_colors(hierarchy)
    assert colors.shape == (15, 3)
    assert len(np.unique(colors[:8], axis=0)) == 8
    assert drawing.levels_to_draw(hierarchy) == [8, 4]
    drawn = drawing.draw_level(hierarchy, 1)
    scale = drawn.shape[0]
    assert drawn.shape == (scale, 8 * scale, 3)
    assert (drawn[0] == 255).all()  # the box's upper side
    assert drawn[scale // 2, 4 * scale].tolist() == colors[14].tolist()


def test_the_box_that_covers_an_object_best_is_drawn(experiment, picture):
    drawing = experiment("selective_search_drawing")
    objects = np.array([[8, 8, 24, 24]], np.float32)
    boxes = np.array([[0, 0, 40, 40], [8, 8, 24, 23]], np.float32)
    drawn = drawing.draw_best(picture, objects, boxes)
    scale = drawn.shape[0] // 40
    color = drawn[8 * scale, 20 * scale].tolist()
    assert drawn[23 * scale - 1, 20 * scale].tolist() == color
    assert drawn[0, 20 * scale].tolist() != color
    nothing = drawing.draw_best(picture, objects[:0], boxes)
    np.testing.assert_array_equal(nothing[::scale, ::scale], picture)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": 0}, "--pictures of at least 1, got 0"),
        ({"modes": ()}, "at least one of --modes single fast quality"),
        ({"split": "dev"}, "dev"),
    ],
)
def test_what_cannot_be_done_is_refused(search, data_dir, tmp_path, changes, message):
    config = search.Config(data_dir=data_dir, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=message):
        search.main(dataclasses.replace(config, **changes))


def test_the_benchmark_tiny(run_script, data_dir, tmp_path):
    file = tmp_path / "numbers.json"
    flags = ("--sizes", 128, "--modes", "single", "--pictures", 1, "--repeats", 1)
    flags += ("--processes", 1, "--scenes", 4, "--json", file)
    flags += ("--garments", "embedded", "--data-dir", data_dir)  # the same scenes as above
    done = run_script(BENCH, *flags)
    assert done.returncode == 0, done.stderr
    assert "128 x 128" in done.stdout
    numbers = json.loads(file.read_text())
    (pictures,) = numbers["pictures"]
    assert list(pictures["seconds"]) == ["jaxvision", "OpenCV", "OpenCV, our settings"]
    (whole,) = numbers["data_set"]
    assert (whole["processes"], whole["scenes"]) == (1, 4)
    assert 0 < whole["seconds"] < 60
    refused = run_script(BENCH, "--scenes", 0)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "must be at least 1" in refused.stderr
