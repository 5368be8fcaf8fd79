"""experiments/quickstart.py end to end, small, with the course's log lines."""

import json
import re


def test_prints_the_courses_lines(experiment, data_dir, tmp_path, capsys):
    quickstart = experiment("quickstart")
    config = quickstart.Config(
        epochs=2, data="embedded", data_dir=data_dir, run_dir=tmp_path / "run"
    )
    metrics = quickstart.main(config)
    out = capsys.readouterr().out
    losses = re.findall(r"^loss: (\d\.\d{6})  \[ *(\d+)/11000\]$", out, re.MULTILINE)
    assert [int(seen) for _, seen in losses] == [0, 6400, 0, 6400]
    assert float(losses[0][0]) > float(losses[-1][0])
    assert out.count("Epoch 2\n-------") == 1
    assert len(re.findall(r"Test Error: \n Accuracy: \d+\.\d%, Avg loss: \d\.\d{6}", out)) == 2
    assert out.rstrip().endswith("Done!")
    assert 0.2 < metrics["accuracy"] < 1
    records = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [r["step"] for r in records if "train/loss" in r]
    assert steps == list(range(1, 345))  # 172 batches an epoch: the last, of 56, counts too
