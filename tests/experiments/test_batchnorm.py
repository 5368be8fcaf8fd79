"""experiments/batchnorm.py end to end, tiny, with its files read back; and its parts by hand."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.data import load_dataset
from jaxvision.errors import UserError


@pytest.fixture(scope="module")
def network(experiment):
    return experiment("batchnorm_network")


@pytest.fixture(scope="module")
def pictures(data_dir):
    train = load_dataset("fashion_mnist", data="embedded", data_dir=data_dir)
    return train.subset(np.arange(64))


@pytest.fixture(scope="module")
def quick_run(experiment, data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("batchnorm") / "run"
    batchnorm = experiment("batchnorm")
    config = batchnorm.Config(quick=True, data="embedded", data_dir=data_dir, run_dir=run_dir)
    return run_dir, batchnorm.main(config)


def test_a_quick_run_writes_its_results_and_one_page(quick_run):
    run_dir, results = quick_run
    stored = json.loads((run_dir / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert [title[:2] for title in stored] == [f"{n}." for n in range(1, 8)]
    page = (run_dir / "report.html").read_text()
    for title in stored:
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 2 + 1 + 1 + 1 + 2 * 2 + 1 + 2
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # nothing outside the file
    assert "<script" not in page
    assert json.loads((run_dir / "config.json").read_text())["depth"] == 2


def test_a_quick_run_finds_what_it_must(quick_run):
    _, results = quick_run
    _, _, small, forgotten, drift, rates, shift = results.values()
    assert set(small["with BatchNorm, 2"]) == {"test_accuracy", "stored_loss", "batch_loss"}
    assert "forgot the update, 0.1" in forgotten
    assert len(drift["with BatchNorm, re-estimated"]) == 5
    assert rates["without BatchNorm"][1] is None  # at rate 1e30 it diverges
    assert rates["with BatchNorm"][0] is not None
    last = {name: numbers["shift"][-1] for name, numbers in shift.items()}
    # BatchNorm's output has its parameters for moments; the noisy network is moved every step.
    assert last["with BatchNorm"] < 0.1 * last["without BatchNorm"]
    assert last["noisy BatchNorm"] > 10 * last["with BatchNorm"]


def test_the_algorithm_is_that_of_the_paper(experiment):
    finding = experiment("batchnorm_algorithm").algorithm()
    y = np.array(finding.numbers["y"])
    # Channel 1 is 1 to 5: mean 3, variance 2. Channel 2 has mean 30, variance 280.
    np.testing.assert_allclose(y[:, 0], (np.arange(1, 6) - 3) / math.sqrt(2 + 1e-5), atol=1e-6)
    assert y[3, 1] == pytest.approx(2 * 30 / math.sqrt(280) - 1, abs=1e-5)
    assert len(finding.checks) == 7


def test_a_wrong_variance_does_not_pass_the_checks(experiment, monkeypatch):
    algorithm = experiment("batchnorm_algorithm")
    right = algorithm.batch_norm

    def unbiased(x, scale, bias, eps=1e-5):
        y, mean, var, count = right(x, scale, bias, eps)
        return (y - bias[None]) * jnp.sqrt((count - 1) / count) + bias[None], mean, var, count

    monkeypatch.setattr(algorithm, "batch_norm", unbiased)
    with pytest.raises(algorithm.Finding.check.__globals__["CheckError"], match="same y"):
        algorithm.algorithm()


def test_a_wrong_momentum_does_not_pass_the_checks(experiment, monkeypatch):
    algorithm = experiment("batchnorm_algorithm")
    layer = algorithm.BatchNorm
    monkeypatch.setattr(algorithm, "BatchNorm", lambda momentum: layer(momentum=0.2))
    with pytest.raises(experiment("findings").CheckError, match="this recursion's"):
        algorithm.running_averages(seed=0, batches=5)


@pytest.mark.parametrize(("forget", "moves"), [(None, True), ("train", False), ("update", False)])
def test_what_is_forgotten_keeps_the_statistics_where_they_were(network, pictures, forget, moves):
    model = network.DeepNetwork("batch", depth=2, width=8)
    trainer = network.Trainer(model, pictures, batch_size=16, seed=0, forget=forget)
    trained = trainer.train(0.01, 3)
    mean = trained.state.batch_stats["bn1"]["mean"]
    assert bool(jnp.any(mean != 0)) == moves
    kernel = trained.state.params["fc1"]["kernel"]
    assert jnp.any(kernel != trainer.variables["params"]["fc1"]["kernel"])


def test_one_step_serves_all_learning_rates(network, pictures):
    model = network.DeepNetwork("none", depth=2, width=8)
    trainer = network.Trainer(model, pictures, batch_size=16, seed=0)
    still = trainer.train(0.0, 3, probe=lambda state: int(state.step), at=[0, 2])
    assert still.probes == {0: 0, 2: 2, 3: 3}
    start = jax.tree.leaves(trainer.variables["params"])
    for before, after in zip(start, jax.tree.leaves(still.state.params), strict=True):
        np.testing.assert_array_equal(before, after)
    before = trainer.variables["params"]["head"]["bias"]
    slow, fast = (
        trainer.train(rate, 1).state.params["head"]["bias"] - before for rate in (0.01, 0.02)
    )
    np.testing.assert_allclose(2 * slow, fast, rtol=1e-3)
    diverged = trainer.train(1e30, 60)
    assert diverged.diverged_at == len(diverged.losses) < 50
    assert not np.isfinite(diverged.losses[-1])
    assert np.isfinite(diverged.losses[:-1]).all()


def test_re_estimation_takes_the_new_pictures_statistics_and_no_weight(network, pictures):
    model = network.DeepNetwork("batch", depth=2, width=8)
    trainer = network.Trainer(model, pictures, batch_size=16, seed=0)
    variables = trainer.train(0.01, 2).state.variables
    bright = np.full_like(pictures.images, 200)
    bright[::2] = 100
    new = network.re_estimated(model, variables, bright, batch=32)
    x = (bright.reshape(64, -1) / 255 - network.MEAN) / network.STD
    values = x @ np.asarray(variables["params"]["fc1"]["kernel"], np.float64)
    stored = new["batch_stats"]["bn1"]
    np.testing.assert_allclose(stored["mean"], values.mean(axis=0), rtol=1e-4, atol=1e-4)
    each = (values[:32].var(axis=0, ddof=1) + values[32:].var(axis=0, ddof=1)) / 2
    np.testing.assert_allclose(stored["var"], each, rtol=1e-3)
    assert int(stored["num_batches_tracked"]) == 2
    assert new["params"] is variables["params"]


def test_the_noise_is_of_training_alone_and_has_the_scale_that_inference_takes(network, pictures):
    model = network.DeepNetwork("noisy", depth=2, width=8)
    trainer = network.Trainer(model, pictures, batch_size=16, seed=0)
    logits = [
        network.logits_of(model, trainer.variables, pictures.images, train=False) for _ in range(2)
    ]
    np.testing.assert_array_equal(*logits)
    noise = network.unsteady(jax.random.key(0), jnp.ones((400, 500)))
    np.testing.assert_allclose(noise.mean(), network.MEAN_SCALE, atol=0.05)
    of_unit = noise.mean(axis=0)
    assert float(of_unit.std()) == pytest.approx(math.sqrt(1 / 12 + 0.25**2 / 12), rel=0.15)


def test_the_shift_is_counted_in_standard_deviations(experiment):
    shift = experiment("batchnorm_shift")
    at = [
        shift.Probe(np.array([[mean, 0.0]]), np.array([[2.0, 1.0]]), None, 0.0, None, None)
        for mean in (0.0, 1.0, 4.0)
    ]
    # The first unit moves by 1/2 and 3/2 deviations, the second does not.
    np.testing.assert_allclose(shift.shift_of(dict(enumerate(at))), [0.5])


def test_brightness_stops_at_white(experiment):
    brighter = experiment("batchnorm_failures").brighter
    np.testing.assert_array_equal(
        brighter(np.array([0, 100, 250], np.uint8), 0.2), np.array([51, 151, 255], np.uint8)
    )


def test_findings_show_tables_and_refuse_false_claims(experiment, capsys):
    findings = experiment("findings")
    finding = findings.Finding("Title", ("words",))
    finding.table("Caption", ("name", "value"), [("a", 1.5), ("long", 10)])
    finding.check("it holds", True)
    with pytest.raises(findings.CheckError, match="it does not"):
        finding.check("it does not", np.bool_(False))
    finding.print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-7:-3] == ["name  value", "----  -----", "a       1.5", "long     10"]
    assert lines[-3:] == ["", "[ok] it holds", ""]
    assert "it does not" not in finding.section().body_html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "--depth of at least 1, got 0"),
        ({"batch_size": 1}, "batches of at least 2, got 1"),
        ({"small_batches": (2, 64), "small_batch_pictures": 32}, "at least 64"),
        ({"learning_rates": (0.1, 0.0)}, "above 0, got 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(experiment, tmp_path, changes, message):
    batchnorm = experiment("batchnorm")
    config = dataclasses.replace(batchnorm.Config(run_dir=tmp_path / "run"), **changes)
    with pytest.raises(UserError, match=message):
        batchnorm.main(config)
    assert not (tmp_path / "run").exists()
