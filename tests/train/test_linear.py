"""Linear SVMs by their optimality and against scikit-learn, mining, ridge regression."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxvision.train.linear import fit_ridge, fit_svms, mine_svms, squared_hinge

C, WEIGHT = 1e-3, 2.0


@pytest.fixture(scope="module")
def problem():
    """Features as of a network, positive and of a norm of about 20, of which few are positive."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(1500, 12)), 0)
    features *= 20 / np.linalg.norm(features, axis=1).mean()
    margins = features @ rng.normal(size=(12, 3)) + rng.normal(scale=4, size=(1500, 3))
    targets = np.where(margins > np.quantile(margins, 0.97, axis=0), 1, -1)
    targets[rng.random(targets.shape) < 0.1] = 0
    return features.astype(np.float32), targets


@pytest.fixture(scope="module")
def solved(problem):
    svms = fit_svms(*problem, c=C, positive_weight=WEIGHT)
    return jax.tree.map(np.asarray, svms)


def gradient(problem, svms):
    """Of the objective of each SVM, with respect to weights and bias, in float64."""
    x, t = problem[0].astype(np.float64), problem[1]
    kernel, bias = (np.asarray(part, np.float64) for part in svms)
    weights = np.where(t > 0, WEIGHT, 1.0) * (t != 0)
    pull = -2 * C * weights * t * np.maximum(1 - t * (x @ kernel + bias), 0)
    return kernel + x.T @ pull, pull.sum(axis=0)


def test_squared_hinge_by_hand():
    margins = np.array([[2.0, -0.5], [0.5, 3.0], [-1.0, np.inf]], np.float32)
    targets = np.array([[1, 1], [-1, -1], [-1, 1]], np.int32)
    # Of the first 0, (1 + 0.5)^2 and 0; of the second, twice, (1 + 0.5)^2, then 16 and 0.
    losses = jax.jit(partial(squared_hinge, positive_weight=2))(margins, targets)
    np.testing.assert_allclose(losses, [2.25, 2 * 2.25 + 16])


def test_the_gradient_is_zero_at_the_solution(problem, solved):
    at_zero = gradient(problem, (np.zeros((12, 3)), np.zeros(3)))
    for part, before in zip(gradient(problem, solved), at_zero, strict=True):
        assert np.abs(part).max() < 1e-4 * np.abs(before).max()


def test_a_target_of_zero_is_as_no_row(problem, solved):
    features, targets = problem
    rows = targets[:, 1] != 0
    # Three times, so that it is the same program.
    alone = fit_svms(features[rows], targets[rows][:, [1, 1, 1]], c=C, positive_weight=WEIGHT)
    kernel, bias = map(np.asarray, alone)
    for k in range(3):
        np.testing.assert_allclose(kernel[:, k], solved.kernel[:, 1], atol=2e-4)
        np.testing.assert_allclose(bias[k], solved.bias[1], atol=2e-3)


def test_as_scikit_learn_does_it(problem, solved):
    svm = pytest.importorskip("sklearn.svm", reason="needs scikit-learn")
    features, targets = problem
    for k in range(3):
        rows = targets[:, k] != 0
        # Its bias is penalised, the less the larger this is.
        options = {"C": C, "class_weight": {1: WEIGHT, -1: 1.0}, "intercept_scaling": 1000.0}
        theirs = svm.LinearSVC(dual=False, tol=1e-8, max_iter=100_000, **options)
        theirs.fit(features[rows], targets[rows, k])
        np.testing.assert_allclose(theirs.coef_[0], solved.kernel[:, k], atol=1e-3)
        margins = features @ solved.kernel[:, k] + solved.bias[k]
        np.testing.assert_allclose(
            theirs.decision_function(features), margins, rtol=1e-3, atol=2e-3
        )


def test_mining_ends_at_the_svms_of_all_rows(problem, solved):
    features, targets = problem
    blocks = [(features[i : i + 400], targets[i : i + 400]) for i in range(0, 1500, 400)]
    said = []
    options = {"first_negatives": 100, "most_new": 150, "max_rounds": 20, "seed": 1}
    mined = mine_svms(blocks, c=C, positive_weight=WEIGHT, announce=said.append, **options)
    assert mined.converged
    assert len(mined.rows) == len(said) > 3
    assert (np.diff(mined.rows) <= 150).all()
    assert mined.rows[0] < 300 < mined.rows[-1] < 1500
    assert "0 hard negatives more" in said[-1]
    np.testing.assert_allclose(mined.svms.kernel, solved.kernel, atol=2e-4)
    np.testing.assert_allclose(mined.svms.bias, solved.bias, atol=2e-3)
    # One round is what R-CNN's first, random negatives give: SVMs of few rows, and not those.
    options["max_rounds"] = 1
    once = mine_svms(blocks, c=C, positive_weight=WEIGHT, announce=said.append, **options)
    assert not once.converged
    assert np.abs(once.svms.kernel - solved.kernel).max() > 5e-3


@pytest.mark.parametrize("rows", [0, 5])
def test_svms_without_rows_or_without_positives_are_finite(rows):
    features = np.random.default_rng(0).normal(size=(rows, 12)).astype(np.float32)
    targets = np.full((rows, 3), -1)
    svms = fit_svms(features, targets)
    assert np.isfinite(svms.kernel).all()
    assert np.isfinite(svms.bias).all()
    mined = mine_svms([(features, targets)] * 2, announce=lambda line: None)
    assert np.isfinite(mined.svms.kernel).all()


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_ridge_is_the_closed_form(shape):
    """Both ways of solving it, against a system in which the bias is one unknown more."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(1.0, 2.0, shape), rng.normal(3.0, 1.0, (shape[0], 4))
    line = fit_ridge(x.astype(np.float32), y.astype(np.float32), penalty=10.0)
    extended = np.concatenate([x, np.ones((shape[0], 1))], axis=1)
    penalty = np.diag([10.0] * shape[1] + [0.0])
    expected = np.linalg.solve(extended.T @ extended + penalty, extended.T @ y)
    np.testing.assert_allclose(line.kernel, expected[:-1], atol=1e-5)
    np.testing.assert_allclose(line.bias, expected[-1], atol=1e-5)


def test_ridge_of_few_rows():
    nothing = fit_ridge(np.zeros((0, 3), np.float32), np.zeros((0, 4), np.float32))
    assert nothing.kernel.shape == (3, 4)
    assert not nothing.kernel.any()
    one = fit_ridge(np.ones((1, 3), np.float32), np.array([[1.0, 2.0]], np.float32))
    np.testing.assert_allclose(one.bias, [1, 2])
    assert not one.kernel.any()
