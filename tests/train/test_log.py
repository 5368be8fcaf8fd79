"""What a run says of itself."""

import json
import math

import pytest

from jaxvision.errors import UserError
from jaxvision.train.log import RunLog


def record(step, **values):
    return {"step": step, "epoch": 1, **{k.replace("_", "/", 1): v for k, v in values.items()}}


def lines(path):
    return (path / "metrics.jsonl").read_text().splitlines()


def test_each_record_is_one_line_at_once(tmp_path, capsys):
    with RunLog(tmp_path) as log:
        log.write(record(10, train_loss=0.5, train_accuracy=0.25))
        assert json.loads(lines(tmp_path)[0]) == record(10, train_loss=0.5, train_accuracy=0.25)
        log.write(record(10, val_loss=0.4, val_accuracy=0.5))
    shown = capsys.readouterr().out
    assert "epoch 1  step 10  loss 0.5  accuracy 0.25\n" in shown
    assert "epoch 1  step 10  val loss 0.4  val accuracy 0.5\n" in shown


def test_what_is_not_finite_is_null(tmp_path):
    with RunLog(tmp_path, quiet=True) as log:
        log.write(record(1, train_loss=math.nan, train_grad_norm=math.inf))
    assert json.loads(lines(tmp_path)[0]) == record(1, train_loss=None, train_grad_norm=None)


def test_going_on_drops_what_a_killed_run_left_behind(tmp_path):
    whole = [json.dumps(record(step, train_loss=1.0)) for step in (3, 6, 9)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*whole, '{"step": 12, "tr']))
    with RunLog(tmp_path, start_step=6, quiet=True) as log:
        log.write(record(9, train_loss=2.0))
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [3, 6, 9]
    assert json.loads(lines(tmp_path)[-1])["train/loss"] == 2.0


def events(run_dir):
    from tensorboardX.proto import event_pb2

    [file] = (run_dir / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:  # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
        size = int.from_bytes(data[:8], "little")
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_tensorboard_gets_the_scalars(tmp_path):
    with RunLog(tmp_path, quiet=True) as log:
        log.write(record(7, train_loss=0.5, train_accuracy=0.25))
        log.write(record(8, train_loss=math.nan))
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars == [(7, "train/loss", 0.5), (7, "train/accuracy", 0.25)]


def test_tensorboard_hides_what_a_killed_run_left_behind(tmp_path):
    with RunLog(tmp_path, start_step=6, quiet=True) as log:
        log.write(record(7, train_loss=0.5))
    version, start, scalar = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (7, start.session_log.START)
    assert scalar.step == 7


def test_a_disk_that_fills_up_is_one_line_and_no_waiting(tmp_path):
    """Though metrics.jsonl still has room: its file is the smaller one."""
    resource = pytest.importorskip("resource")
    values = {f"train_{name}": 1.0 for name in "abcdefgh"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_for_long(log):
        for step in range(1000):
            log.write(record(step, **values))

    with RunLog(tmp_path, quiet=True) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(UserError, match=f"cannot write to {tmp_path}"):
                write_for_long(log)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < (tmp_path / "metrics.jsonl").stat().st_size < 20_000


def test_a_line_of_ones_own(capsys):
    with RunLog(None, line=lambda r: f"loss: {r['train/loss']}" if r["step"] % 2 else None) as log:
        log.write(record(1, train_loss=0.5))
        log.write(record(2, train_loss=0.4))
    assert capsys.readouterr().out == "loss: 0.5\n"


def test_quiet_and_without_a_folder_says_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunLog(None, quiet=True) as log:
        log.start(total=3, done=0)
        log.write(record(1, train_loss=0.5))
        log.advance(1)
        log.say("hello")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to"):
        RunLog(tmp_path / "file")
