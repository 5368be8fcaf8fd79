"""`predict` and `evaluate` of detectors and segmenters: what is printed, written and drawn."""

import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxvision.cli import main
from jaxvision.cli.outputs import write_coco
from jaxvision.data import write_coco_json
from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.weights.catalog import coco_classes

from .bright_boxes import CLASSES, SELECTIONS, scene, tolerance, write_mixed_pictures

WHITE, RED = (10, 20, 60, 50), (70, 30, 110, 70)


@pytest.fixture
def run_command(capsys):
    """Runs a command line; returns (exit status, what it printed, what it complained of)."""

    def run(*arguments):
        status = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return folder, write_mixed_pictures(folder)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in (7, 9):
        Image.fromarray(scene()).save(folder / f"{i:012d}.png")
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (120, 80))
    for shift in range(7):
        frame = scene(white=(10 + shift, 20, 60 + shift, 50))
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def test_a_folder_of_all_kinds_of_pictures(detector_run, mixed, run_command, tmp_path):
    folder, good = mixed
    out, table = tmp_path / "drawn", tmp_path / "found.json"
    status, printed, complaints = run_command(
        "predict", detector_run, folder, "--out", out, "--json", table
    )
    assert status == 1
    assert f"error: 2 of {len(good) + 2} pictures could not be read" in complaints
    for bad in ("truncated.jpg", "text.jpg"):
        assert f"error: {folder / bad}: expected a" in complaints
        assert bad not in printed
    assert len(complaints.strip().splitlines()) == 3
    records = {r["picture"].rpartition("/")[2]: r for r in json.loads(table.read_text())}
    assert set(records) == set(good)
    for name, box in good.items():
        size = records[name]["height"], records[name]["width"]
        best = records[name]["objects"][0]
        assert best["class"] == "bright"
        assert np.abs(np.array(best["box"]) - box).max() <= tolerance(size), name
        assert f"{folder / name}: 1 x bright" in printed
    assert "1 x bright, 1 x red" in printed
    assert len(list(out.glob("*.jpg"))) == len(good)
    with Image.open(out / "photo.jpg") as drawn:
        assert drawn.size[0] % 120 == 0
    with Image.open(out / "large.jpg") as drawn:
        assert drawn.size == (1920, 1280)


def test_drawings_replace_no_picture_and_are_none(
    detector_run, pictures, video, run_command, tmp_path
):
    elsewhere = tmp_path / "photo.jpg"
    Image.fromarray(scene()).save(elsewhere)
    (pictures / "photo.jpg").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    status, _, complaints = run_command("predict", detector_run, pictures, "--out", pictures)
    assert status == 1
    assert f"{pictures / 'photo.jpg'} exists and was not drawn by jaxvision" in complaints
    assert elsewhere.read_bytes() == before
    assert len(list(pictures.iterdir())) == 3  # none is drawn before all are looked at

    drawn = pictures / "drawn"
    drawn.mkdir()
    Image.fromarray(scene()).save(drawn / "own.png")
    for inputs in ([pictures], [pictures], [pictures / "**" / "*.*g"]):
        arguments = ("predict", detector_run, *inputs, "--out", drawn)
        status, printed, complaints = run_command(*arguments)
        assert (status, complaints) == (0, "")
        assert f"drawn: 4 files in {drawn}" in printed
    assert run_command("predict", detector_run, video, "--out", drawn)[0] == 0
    status, _, complaints = run_command("predict", detector_run, video, "--out", drawn)
    assert status == 1
    assert f"{drawn / 'clip.mp4'} exists: delete it" in complaints
    assert run_command("predict", detector_run, pictures, "--out", drawn)[0] == 0


def test_tables_and_cocos_results(detector_run, pictures, run_command, tmp_path):
    table, results = tmp_path / "found.csv", tmp_path / "results.json"
    status, printed, _ = run_command(
        "predict", detector_run, pictures / "*.png", "--csv", table, "--coco", results
    )
    assert status == 0
    assert f"written: {results}" in printed
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["class"] for row in rows] == ["bright", "red"] * 2
    assert [float(rows[1][side]) for side in ("x1", "y1", "x2", "y2")] == pytest.approx(RED, abs=1)
    found = json.loads(results.read_text())
    assert {(row["image_id"], row["category_id"]) for row in found} == {
        (i, k) for i in (7, 9) for k in (1, 2)
    }
    assert found[0]["bbox"] == pytest.approx([10, 20, 50, 30], abs=1)
    assert found[0]["file_name"] == "000000000007.png"


def test_thresholds_are_obeyed(detector_run, pictures, run_command):
    status, printed, _ = run_command("predict", detector_run, pictures, "--threshold", 1.0)
    assert status == 0
    assert printed.count("1 x bright") == 2  # a mean of exactly 1; red's is as high
    flags = ("--threshold", 0.2, "--iou-threshold", 0.7, "--max-detections", 5, "--flip")
    status, printed, complaints = run_command("predict", detector_run, pictures, *flags)
    assert status == 0, complaints
    given = {"score_threshold": 0.2, "iou_threshold": 0.7, "max_detections": 5}
    assert vars(SELECTIONS[-1]) == given
    status, _, complaints = run_command("predict", detector_run, pictures, "--threshold", 1.5)
    assert status == 1
    assert "expected --threshold from 0 to 1, got 1.5" in complaints
    status, _, complaints = run_command("predict", detector_run, pictures, "--class-names", "a")
    assert status == 1
    assert "--class-names is of --model: a run knows" in complaints
    for flag, value in (("--max-detections", 0), ("--iou-threshold", 2)):
        status, _, complaints = run_command("evaluate", detector_run, flag, value)
        assert status == 1
        assert f"error: expected {flag}" in complaints


def test_videos(detector_run, video, run_command, tmp_path):
    out, table = tmp_path / "out", tmp_path / "found.json"
    arguments = ("predict", detector_run, video, "--every", 3, "--out", out)
    status, printed, _ = run_command(*arguments, "--json", table)
    assert status == 0
    assert f"{video}, frame 6: " in printed
    records = json.loads(table.read_text())
    assert [(r["frame"], r["seconds"]) for r in records] == [(0, 0.0), (3, 0.3), (6, 0.6)]
    lefts = [r["objects"][0]["box"][0] for r in records]
    assert lefts == pytest.approx([10, 13, 16], abs=1.5)
    capture = cv2.VideoCapture(str(out / "clip.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10 / 3, abs=0.01)
    capture.release()
    frames = tmp_path / "frames"
    run_command(*arguments[:-1], frames, "--frames")
    assert sorted(p.name for p in frames.iterdir()) == [f"clip-{i:06d}.jpg" for i in (0, 3, 6)]


def test_bad_videos_are_named(detector_run, pictures, run_command, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    arguments = ("predict", detector_run, pictures, tmp_path / "no.mp4", tmp_path / "empty.mp4")
    status, printed, complaints = run_command(*arguments)
    assert status == 1
    assert printed.count("1 x bright") == 2
    assert "no.mp4: expected a video that OpenCV can read" in complaints
    assert "empty.mp4: expected a video, got an empty file" in complaints
    assert "2 of 4 files could not be read" in complaints


def test_files_of_one_name_do_not_overwrite_each_other(detector_run, run_command, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(scene()).save(tmp_path / folder / "same.png")
    out = tmp_path / "out"
    run_command("predict", detector_run, tmp_path / "a", tmp_path / "b", "--out", out)
    assert sorted(p.name for p in out.iterdir()) == ["same-2.jpg", "same.jpg"]


def test_maps(segmenter_run, pictures, run_command, tmp_path):
    out, table, rows = tmp_path / "out", tmp_path / "found.json", tmp_path / "found.csv"
    files = ("--out", out, "--json", table, "--csv", rows)
    status, printed, _ = run_command("predict", segmenter_run, pictures, *files)
    assert status == 0
    assert "background 6" in printed
    shares = json.loads(table.read_text())[0]["shares"]
    assert shares["bright"] == pytest.approx(1500 / 9600, abs=0.03)
    classes = [row["class"] for row in csv.DictReader(rows.read_text().splitlines())]
    assert classes == ["background", "red", "bright"] * 2
    labels = np.asarray(Image.open(out / "000000000007-labels.png"))
    assert labels.shape == (80, 120)
    assert labels[35, 30] == 1
    assert (out / "000000000007.jpg").exists()
    status, _, complaints = run_command(
        "predict", segmenter_run, pictures, "--coco", tmp_path / "c.json"
    )
    assert status == 1
    assert "--coco needs a model that finds boxes, got one for segmentation" in complaints


# --------------------------------------------------------------------------------------- evaluate
@pytest.fixture
def annotated(tmp_path):
    """The pictures of a data set in COCO's format: one box of the red ones is wrong."""
    images = np.stack([scene(), scene(white=(5, 5, 50, 40)), scene(red=(60, 45, 100, 75))])
    boxes = [(WHITE, RED), ((5, 5, 50, 40), (0, 60, 30, 80)), (WHITE, (60, 45, 100, 75))]
    dataset = DetectionDataset(
        images=images,
        names=("one", "two", "three"),
        image_ids=np.arange(1, 4),
        objects=tuple(Objects.of(np.array(each, float).tolist(), (0, 1)) for each in boxes),
        class_names=CLASSES,
        name="rectangles",
        split="val",
        source="made here",
    )
    write_coco_json(dataset, tmp_path / "data")
    return tmp_path / "data"


def test_evaluate_a_detector_on_ones_own_data(detector_run, annotated, run_command):
    arguments = ("evaluate", detector_run, "--data", "coco_json", "--source", annotated)
    status, printed, complaints = run_command(*arguments)
    assert status == 0, complaints
    # All of the white boxes are found; of the three red ones two, the wrong one among equals.
    (line,) = [line for line in printed.splitlines() if line.startswith("val: ")]
    words = dict(zip(("voc07", "voc12", "coco"), map(float, figures(line)), strict=True))
    # Of the red ones, right, wrong, right: an AP of 5 / 9, and by eleven points of 6 / 11.
    assert words["voc12"] == pytest.approx((1 + 5 / 9) / 2, abs=1e-4)
    assert words["voc07"] == pytest.approx((1 + 6 / 11) / 2, abs=1e-4)
    assert words["coco"] <= words["voc12"]
    assert "of 3 pictures" in line
    for name in (*CLASSES, "AP_small", "AR_100"):
        assert name in printed
    status, printed, _ = run_command(*arguments, "--count", 1)
    assert "VOC12 mAP@0.5 1.0000" in printed
    assert "of 1 pictures" in printed


def figures(line):
    return [part.split()[-1] for part in line.replace(" of 3 pictures", "").split(",")]


def test_evaluate_says_what_is_missing(detector_run, annotated, run_command):
    status, _, complaints = run_command("evaluate", detector_run)
    assert status == 1
    assert "does not name its data set: say --data NAME" in complaints
    status, _, complaints = run_command("evaluate", detector_run, "--data", "nowhere")
    assert "expected one of the detection data sets" in complaints
    arguments = ("evaluate", detector_run, "--data", "coco_json", "--source", annotated)
    status, _, complaints = run_command(*arguments, "--split", "test")
    assert "has no split 'test'" in complaints


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a run folder and pictures"),
        (["{run}"], "expected pictures after the run folder"),
        (["{run}", "{pictures}", "--every", "0"], "of at least 1"),
        (["{run}", "{pictures}", "--json", "{pictures}/no/where.json"], "there is no folder"),
        (["--model", "yolox_s", "{pictures}"], "JAXVISION_OFFLINE"),
        (["--model", "nothing", "{pictures}"], "no weights are published"),
        (["{run}", "{pictures}/*.tif"], "no pictures in"),
    ],
)
def test_mistakes_are_one_line(detector_run, pictures, run_command, arguments, message):
    words = [a.format(run=detector_run, pictures=pictures) for a in arguments]
    status, _, complaints = run_command("predict", *words)
    assert status == 1
    assert message in complaints
    assert len(complaints.strip().splitlines()) == 1


def test_help_says_what_can_be_done(run_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    status, printed, _ = run_command("predict", "--help")
    assert status == 0
    for words in ("RUN PATH", "--threshold", "--every", "--coco", "--model", "detection"):
        assert words in printed


def test_cocos_own_category_ids(tmp_path):
    record = {"picture": "street.jpg", "objects": []}
    for label in (0, 11, 79):  # person, stop sign, toothbrush
        record["objects"].append({"label": label, "score": 0.5, "box": [0, 0, 4, 2]})
    write_coco(tmp_path / "coco.json", [record], coco_classes())
    rows = json.loads((tmp_path / "coco.json").read_text())
    assert [row["category_id"] for row in rows] == [1, 13, 90]
    assert rows[0]["image_id"] == 1
