"""experiments/autograd.py: each section against hand values, finite differences and PyTorch."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "autograd.py"
SEEDS = pytest.mark.parametrize("seed", [0, 1, 7])


@pytest.fixture(scope="module")
def autograd():
    spec = importlib.util.spec_from_file_location("experiments_autograd", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bce(w, b, x, y) -> float:
    """The loss as the textbook writes it, in float64."""
    p = 1 / (1 + np.exp(-(x @ w + b)))
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))


def central_differences(f, value, step=1e-5):
    value = np.asarray(value, np.float64)
    slopes = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        nudge = np.zeros_like(value)
        nudge[index] = step
        slopes[index] = (f(value + nudge) - f(value - nudge)) / (2 * step)
    return slopes


@SEEDS
def test_gradient_agrees_with_finite_differences(autograd, seed):
    result = autograd.gradient(seed)
    w, b, x, y = (np.asarray(a, np.float64) for a in result["inputs"])
    assert (w.shape, b.shape) == ((5, 3), (3,))
    np.testing.assert_array_equal(x, np.ones(5))
    np.testing.assert_array_equal(y, np.zeros(3))
    np.testing.assert_allclose(result["loss"], bce(w, b, x, y), rtol=1e-5)
    dw, db = result["grads"]
    by_w = central_differences(lambda w: bce(w, b, x, y), w)
    np.testing.assert_allclose(dw, by_w, atol=1e-6)
    np.testing.assert_allclose(db, central_differences(lambda b: bce(w, b, x, y), b), atol=1e-6)
    np.testing.assert_allclose(result["on_paper"][0], by_w, atol=1e-6)


def test_bce_with_logits_by_hand_and_far_from_zero(autograd):
    np.testing.assert_allclose(autograd.bce_with_logits(np.zeros(3), np.ones(3)), np.log(2), 1e-6)
    far, label = np.array([-200.0, 200.0], np.float32), np.array([1.0, 1.0], np.float32)
    loss, slope = jax.value_and_grad(autograd.bce_with_logits)(far, label)
    np.testing.assert_allclose(loss, 100.0, rtol=1e-6)  # 200 for the first, 0 for the second
    np.testing.assert_allclose(slope, [-0.5, 0.0], atol=1e-6)


@SEEDS
def test_detach_keeps_the_value_and_cuts_the_gradient(autograd, seed):
    result = autograd.detach(seed)
    np.testing.assert_allclose(result["cut_loss"], result["loss"], rtol=1e-6)
    assert [g.shape for g in result["cut_grads"]] == [(5, 3), (3,)]
    assert all(np.all(g == 0) for g in result["cut_grads"])
    assert result["slopes"] == (6.0, 3.0)


def test_no_grad_builds_no_backward_pass(autograd):
    result = autograd.no_grad(0)
    forward, of_b, of_both = result["counts"].values()
    assert forward == (12, 0)
    assert of_both[0] > of_b[0] > forward[0]
    # dL/dw alone needs the outer product and its transposition.
    assert of_both[1] - of_b[1] == 2
    # x is what the product with w needs for its backward pass, so it must be among the residuals.
    assert any(r.shape == (5,) and np.all(r == 1) for r in result["residuals"])


@SEEDS
def test_frozen_leaves_keep_their_bits(autograd, seed):
    result = autograd.frozen(seed)
    params, new = result["params"], result["new"]
    for name in ("a part of the tree", "partition"):
        for leaf in ("w", "b"):
            before, after = params["backbone"][leaf], new[name]["backbone"][leaf]
            assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
    decayed = params["backbone"]["w"] * (1 - 0.1 * 0.01)
    np.testing.assert_allclose(new["stop_gradient"]["backbone"]["w"], decayed, rtol=1e-6)

    hidden = np.tanh(np.sum(params["backbone"]["w"], axis=0) + params["backbone"]["b"])
    head_w = np.asarray(params["head"]["w"], np.float64)
    slope = central_differences(lambda w: bce(w, np.zeros(3), hidden, np.zeros(3)), head_w)
    expected = head_w - 0.1 * (slope + 0.01 * head_w)
    for tree in new.values():
        np.testing.assert_allclose(tree["head"]["w"], expected, atol=1e-6)


def test_graph_lists_the_operations_in_order(autograd):
    result = autograd.graph(0)
    matmul, add, *rest = result["forward"]
    assert (matmul["name"], matmul["inputs"], matmul["outputs"]) == (
        "dot_general",
        [(5,), (5, 3)],
        [(3,)],
    )
    assert (add["name"], add["inputs"], add["outputs"]) == ("add", [(3,), (3,)], [(3,)])
    assert {op["scope"] for op in rest} == {"bce"}
    assert rest[-1]["outputs"] == [()]
    backward = result["backward"]
    assert "dot_general" in backward["MmBackward0"]
    assert backward["AddBackward0"] == []
    assert len(backward["BinaryCrossEntropyWithLogitsBackward0"]) > 1


@SEEDS
def test_accumulated_gradients_are_the_batch_gradient(autograd, seed):
    result = autograd.accumulate(seed)
    (w, b), x, y = jax.tree.map(lambda a: np.asarray(a, np.float64), result["batch"])
    assert x.shape == (8, 5)
    assert 0 < y.mean() < 1
    by_w = central_differences(lambda w: bce(w, b, x, y), w)
    by_b = central_differences(lambda b: bce(w, b, x, y), b)
    for name, factor in [("full", 1), ("summed", 2), ("equal", 1), ("weighted", 1)]:
        np.testing.assert_allclose(result[name][0], factor * by_w, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(result[name][1], factor * by_b, atol=2e-6, err_msg=name)
    assert np.max(np.abs(result["plain"][1] - by_b)) > 1e-4


def test_flow_by_hand(autograd):
    result = autograd.flow(0)
    assert result["xs"] == [1.0, 3.0, -1.0, 20.0]
    expected = [(16.0, 16.0), (12.0, 4.0), (12.0, -12.0), (20.0, 1.0)]
    for mode in ("python", "forward", "bounded"):
        assert [(float(v), float(s)) for v, s in result[mode]] == expected, mode
    assert "boolean conversion of traced array" in result["if_error"]
    assert result["while_error"].startswith("Reverse-mode differentiation does not work")


@SEEDS
def test_vjp_by_hand(autograd, seed):
    result = autograd.vjp(seed)
    for ones in result["ones"]:
        np.testing.assert_allclose(ones, 2 + 2 * np.eye(4, 5))
    # out[j, i] = (inp[i, j] + 1)^2 depends on inp[i, j] alone.
    jacobian = np.zeros((5, 4, 4, 5))
    for i, j in np.ndindex(4, 5):
        jacobian[j, i, i, j] = 4 if i == j else 2
    np.testing.assert_allclose(result["jacobian"], jacobian)
    (u, uj), (t, jt) = result["vjp"], result["jvp"]
    np.testing.assert_allclose(uj, np.asarray(u).T * (2 + 2 * np.eye(4, 5)), rtol=1e-6)
    np.testing.assert_allclose(jt, (t * (2 + 2 * np.eye(4, 5))).T, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, False, np.nan])
def test_a_false_claim_stops_the_run(autograd, value):
    holds = autograd.max_difference({"a": np.float32(value)}, {"a": np.float32(1)}) <= 1e-6
    with pytest.raises(autograd.CheckError, match="does not: zero is one"):
        autograd.check("zero is one", holds)


def test_an_error_that_does_not_come_stops_the_run(autograd):
    with pytest.raises(autograd.CheckError, match="expected ValueError"):
        autograd.first_line_of_error(ValueError, lambda x: x)


def test_same_bits_tells_the_zeros_apart(autograd):
    assert autograd.same_bits({"a": np.zeros(2)}, {"a": np.zeros(2)})
    assert not autograd.same_bits({"a": np.zeros(2)}, {"a": -np.zeros(2)})


def test_end_to_end(run_script):
    done = run_script(SCRIPT)
    assert done.returncode == 0, done.stderr
    titles = [
        line for line in done.stdout.splitlines() if line[:3] in {f"{i}. " for i in range(10)}
    ]
    assert titles == [
        "1. The gradient of a one-layer network",
        "2. Cutting the graph",
        "3. What replaces no_grad",
        "4. Frozen parameters",
        "5. The computation graph",
        "6. Gradients accumulated against replaced",
        "7. Control flow that changes with the input",
        "8. The vector-Jacobian product",
    ]
    assert done.stdout.count("   PyTorch   ") == done.stdout.count("   JAX       ") == 8
    assert done.stdout.splitlines()[-1] == "All checks hold."
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_one_section_only(run_script):
    done = run_script(SCRIPT, "--section", "flow", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7. Control flow")
    assert done.stdout.count("====\n") == 1


@pytest.mark.parametrize("flags", [("--section", "nonsense"), ("--sed", "1"), ("--seed", "one")])
def test_a_bad_flag_is_refused(run_script, flags):
    done = run_script(SCRIPT, *flags)
    assert done.returncode != 0
    assert flags[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parity
@SEEDS
def test_the_same_gradients_as_pytorch(autograd, seed):
    torch = pytest.importorskip("torch")
    result = autograd.gradient(seed)
    w, b, x, y = (torch.tensor(np.asarray(a)) for a in result["inputs"])
    w.requires_grad_()
    b.requires_grad_()
    z = torch.matmul(x, w) + b
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y)
    loss.backward()
    np.testing.assert_allclose(result["loss"], loss.item(), rtol=1e-6)
    np.testing.assert_allclose(result["grads"][0], w.grad.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(result["grads"][1], b.grad.numpy(), rtol=0, atol=1e-6)

    # The names under which section 5 looks for PyTorch's nodes are PyTorch's.
    names = [loss.grad_fn.name(), z.grad_fn.name()]
    node = z.grad_fn
    while node.next_functions and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
        names.append(node.name())
    backward = list(autograd.graph(seed)["backward"])
    assert names[:2] == backward[:2]
    assert backward[2] in names


@pytest.mark.parity
def test_the_same_vjp_as_pytorch_whose_second_call_adds(autograd):
    torch = pytest.importorskip("torch")
    inp = torch.eye(4, 5, requires_grad=True)
    out = (inp + 1).pow(2).t()
    first, second = autograd.vjp(0)["ones"]
    out.backward(torch.ones_like(out), retain_graph=True)
    np.testing.assert_array_equal(first, inp.grad.numpy())
    out.backward(torch.ones_like(out), retain_graph=True)
    np.testing.assert_array_equal(second + first, inp.grad.numpy())
