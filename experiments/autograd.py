"""Automatic differentiation, run and printed: what torch.autograd does and how JAX says it.

    python experiments/autograd.py                       # all eight sections, a few seconds
    python experiments/autograd.py --section vjp         # one of them
    python experiments/autograd.py --seed 7              # other weights; every check still holds

Each section prints its subject, the PyTorch line and the JAX line that replaces it, the numbers,
and one line "[ok] ..." for each claim that was checked. A claim that does not hold stops the run
with a CheckError; a good run ends with "All checks hold."
"""

import inspect
import itertools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.lax import stop_gradient


@dataclass(frozen=True)
class Config:
    seed: int = 0
    """Seed of the random weights and inputs."""
    section: Literal[
        "all", "gradient", "detach", "no_grad", "frozen", "graph", "accumulate", "flow", "vjp"
    ] = "all"
    """The section to run."""


# ------------------------------------------------------------------------- showing and checking
class CheckError(Exception):
    """A claim of this script was computed and found false."""


def check(claim: str, holds: Any) -> None:
    if not holds:
        raise CheckError(f"expected to hold, and does not: {claim}")
    print(f"   [ok] {claim}")


def show(label: str, value: Any) -> None:
    if not isinstance(value, str):
        value = np.array2string(np.asarray(value), precision=4, floatmode="fixed")
    print(f"   {label:<31}" + value.replace("\n", "\n" + " " * 34))


def max_difference(tree: Any, other: Any) -> float:
    """The largest |a - b| over two trees of arrays; a NaN stays NaN, so that no check passes."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return float(np.max([np.max(np.abs(np.asarray(a) - np.asarray(b))) for a, b in pairs]))


def same_bits(tree: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def normals(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)  # jax.random would compile a program for each shape
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


# ---------------------------------------------------------- the one-layer network of the course
def bce_with_logits(z, y):
    """-mean(y log s(z) + (1 - y) log(1 - s(z))), written so that exp never overflows."""
    return jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z))))


def network_loss(w, b, x, y):
    # A scope changes nothing but the labels of the operations in it, which section 5 reads.
    with jax.named_scope("matmul"):
        xw = x @ w
    with jax.named_scope("add"):
        z = xw + b
    with jax.named_scope("bce"):
        return bce_with_logits(z, y)


def network_inputs(seed: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    w, b = normals(seed, (5, 3), (3,))
    return w, b, jnp.ones(5), jnp.zeros(3)


# --------------------------------------------------------------------------- the eight sections
# A docstring's first line is the section's heading, the rest its explanation: both are printed.
def gradient(seed: int) -> dict[str, Any]:
    """The gradient of a one-layer network

    PyTorch   loss.backward(); w.grad, b.grad
    JAX       loss, (dw, db) = jax.value_and_grad(loss_fn, argnums=(0, 1))(w, b, x, y)

    z = x w + b; the loss is binary cross-entropy with logits. A gradient is not a field of the
    weights but the value of another function. This one is known on paper as well:
    dL/dz = (sigmoid(z) - y) / 3,  dL/dw = outer(x, dL/dz),  dL/db = dL/dz.
    """
    w, b, x, y = network_inputs(seed)
    loss, grads = jax.jit(jax.value_and_grad(network_loss, argnums=(0, 1)))(w, b, x, y)
    dz = (jax.nn.sigmoid(x @ w + b) - y) / 3
    on_paper = (jnp.outer(x, dz), dz)
    difference = max_difference(grads, on_paper)
    show("loss", loss)
    for name, by_jax, by_hand in zip(("dL/dw", "dL/db"), grads, on_paper, strict=True):
        show(f"{name} by jax.grad", by_jax)
        show(f"{name} on paper", by_hand)
    show("largest difference", f"{difference:.1e}")
    library_loss = optax.sigmoid_binary_cross_entropy(x @ w + b, y).mean()
    check("the loss is optax.sigmoid_binary_cross_entropy's", abs(loss - library_loss) <= 1e-6)
    check("jax.grad and the closed form agree within 1e-6", difference <= 1e-6)
    return {"inputs": (w, b, x, y), "loss": loss, "grads": grads, "on_paper": on_paper}


def detach(seed: int) -> dict[str, Any]:
    """Cutting the graph

    PyTorch   z.detach()
    JAX       jax.lax.stop_gradient(z)

    The value passes, the gradient does not. Where only one of several paths is cut, the gradient
    through the others is left: a * stop_gradient(a) has slope a, not 2a.
    """
    w, b, x, y = network_inputs(seed)

    def detached_loss(w, b):
        return bce_with_logits(stop_gradient(x @ w + b), y)

    loss = network_loss(w, b, x, y)
    cut_loss, cut_grads = jax.value_and_grad(detached_loss, argnums=(0, 1))(w, b)
    whole, partial = jax.grad(lambda a: a * a)(3.0), jax.grad(lambda a: a * stop_gradient(a))(3.0)
    show("loss, and of the detached z", f"{loss:.4f}, {cut_loss:.4f}")
    show("dL/db through the detached z", cut_grads[1])
    show("slope of a * a at 3", whole)
    show("slope of a * stop_gradient(a)", partial)
    check("the value is the same", abs(loss - cut_loss) <= 1e-6)
    check("every gradient is exactly 0", not any(g.any() for g in cut_grads))
    check("one of the product's two slopes is left", (whole, partial) == (6.0, 3.0))
    return {"loss": loss, "cut_loss": cut_loss, "cut_grads": cut_grads, "slopes": (whole, partial)}


def operations(f: Callable, *args: jax.Array) -> list[dict[str, Any]]:
    """The program of `f` in order: each operation's name, shapes, and the scope it stands in."""
    return [
        {
            "name": eqn.primitive.name,
            "inputs": [v.aval.shape for v in eqn.invars],
            "outputs": [v.aval.shape for v in eqn.outvars],
            "scope": str(eqn.source_info.name_stack),
            "eqn": eqn,
        }
        for eqn in jax.make_jaxpr(f)(*args).jaxpr.eqns
    ]


def no_grad(seed: int) -> dict[str, Any]:
    """What replaces no_grad

    PyTorch   with torch.no_grad(): loss = loss_fn(w, b, x, y)
    JAX       loss = loss_fn(w, b, x, y)

    Nothing replaces it. PyTorch records every operation in case backward() comes; JAX builds a
    backward pass only when asked, for the arguments that are named. Counted below: the operations
    of three programs, and the arrays (residuals) that a forward pass keeps for the backward.
    """
    w, b, x, y = network_inputs(seed)
    counts = {}
    for name, f in [
        ("loss_fn", network_loss),
        ("gradient of b", jax.value_and_grad(network_loss, argnums=1)),
        ("gradient of w and b", jax.value_and_grad(network_loss, argnums=(0, 1))),
    ]:
        scopes = [op["scope"] for op in operations(f, w, b, x, y)]
        counts[name] = (len(scopes), sum("transpose" in scope for scope in scopes))
        show(name, "{:2d} operations, {:2d} of them backward".format(*counts[name]))

    returned = jax.tree.leaves(jax.eval_shape(network_loss, w, b, x, y))
    # The function that jax.vjp returns is itself a tree, whose leaves are what it kept.
    residuals = jax.tree.leaves(jax.vjp(lambda w, b: network_loss(w, b, x, y), w, b)[1])
    show("loss_fn returns", f"{len(returned)} number")
    show("jax.vjp(loss_fn) keeps", f"{sum(r.size for r in residuals)} numbers more")
    check("the forward alone has no backward operation", counts["loss_fn"][1] == 0)
    check("... and leaves nothing but the loss", [r.shape for r in returned] == [()])
    check("where a gradient may be asked for, residuals are kept", len(residuals) > 0)
    fewer = 0 < counts["gradient of b"][1] < counts["gradient of w and b"][1]
    check("a gradient that is not asked for is not computed", fewer)
    return {"counts": counts, "residuals": residuals}


def frozen(seed: int) -> dict[str, Any]:
    """Frozen parameters

    PyTorch   for p in backbone.parameters(): p.requires_grad = False
    JAX       jax.grad(lambda head: loss_fn({**params, "head": head}))(head)
              optax.partition({"train": sgd, "freeze": optax.set_to_zero()}, labels)

    Differentiate a part of the tree, or let the optimiser drop the other part's updates: both leave
    the backbone as it was, to the last bit. A gradient of zero alone does not: weight decay moves a
    parameter whose gradient was stopped.
    """
    w, b, head_w = normals(seed, (5, 4), (4,), (4, 3))
    backbone, head = {"w": w, "b": b}, {"w": head_w, "b": jnp.zeros(3)}
    params = {"backbone": backbone, "head": head}

    def loss_fn(params):
        hidden = jnp.tanh(jnp.ones(5) @ params["backbone"]["w"] + params["backbone"]["b"])
        return bce_with_logits(hidden @ params["head"]["w"] + params["head"]["b"], jnp.zeros(3))

    def step(tx, loss_fn, params):
        updates, _ = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
        return optax.apply_updates(params, updates)

    step = jax.jit(step, static_argnums=(0, 1))
    sgd = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1))  # decay where torch has it
    labels = {"backbone": "freeze", "head": "train"}
    partition = optax.partition({"train": sgd, "freeze": optax.set_to_zero()}, labels)
    new_head = step(sgd, lambda head: loss_fn({**params, "head": head}), head)
    by_part = {**params, "head": new_head}
    by_partition = step(partition, loss_fn, params)
    by_stop = step(sgd, lambda p: loss_fn({**p, "backbone": stop_gradient(p["backbone"])}), params)
    new = {"a part of the tree": by_part, "partition": by_partition, "stop_gradient": by_stop}
    for name, tree in new.items():
        moved = [max_difference(tree[part], params[part]) for part in ("backbone", "head")]
        show(name, "backbone moved by {:.4f}, head by {:.4f}".format(*moved))
    check("partition moves no bit of the backbone", same_bits(by_partition["backbone"], backbone))
    check("... while the head moves", not same_bits(by_partition["head"], head))
    check("both ways give the same parameters", max_difference(by_part, by_partition) <= 1e-6)
    check("decay moves it in spite of stop_gradient", not same_bits(by_stop["backbone"], backbone))
    return {"params": params, "new": new}


def graph(seed: int) -> dict[str, Any]:
    """The computation graph

    PyTorch   z.grad_fn, loss.grad_fn
    JAX       jax.make_jaxpr(loss_fn)(w, b, x, y)

    A jaxpr is the graph written as a program: one operation a line, in the order in which they run.
    In PyTorch a forward operation points to its backward function; in JAX the backward operations
    stand in the gradient's own program, in the scope transpose(jvp(...)) of the forward one.
    """
    args = network_inputs(seed)
    forward = operations(network_loss, *args)
    print(textwrap.indent(str(jax.make_jaxpr(network_loss)(*args)), "   "), end="\n\n")
    for number, op in enumerate(forward, 1):
        inputs, outputs = (" ".join(map(str, op[side])) for side in ("inputs", "outputs"))
        print(f"   {number:2d}  {op['name']:<12} {inputs:<12} -> {outputs:<6} {op['scope']}")

    program = operations(jax.value_and_grad(network_loss, argnums=(0, 1)), *args)
    bce, add, matmul = (
        [op for op in program if op["scope"] == f"transpose(jvp({scope}))"]
        for scope in ("bce", "add", "matmul")
    )
    backward = {  # PyTorch's names of loss.grad_fn, of its input's, z.grad_fn, and of x w's
        "BinaryCrossEntropyWithLogitsBackward0": [op["name"] for op in bce],
        "AddBackward0": [op["name"] for op in add],
        "MmBackward0": [op["name"] for op in matmul],
    }
    for name, found in backward.items():
        print(f"\n   {name} is, in the gradient's program,")
        print(textwrap.indent(textwrap.fill(" ".join(found) or "no operation", 80), "      "))
    print()
    # The slope of a sum is 1 for both terms, so AddBackward0 only hands dL/dz on: the variable that
    # bce's backward pass writes last must be the very one that matmul's reads.
    dz, read = bce[-1]["eqn"].outvars[0], matmul[0]["eqn"].invars
    scopes = list(dict.fromkeys(op["scope"] for op in forward))
    check("the forward runs matmul, add, bce", scopes == ["matmul", "add", "bce"])
    check("the backward follows, in reverse", program[-len(bce + matmul) :] == bce + matmul)
    check("add's backward has no operation: dL/dz is handed on", not add and dz in read)
    return {"forward": forward, "backward": backward}


def accumulate(seed: int) -> dict[str, Any]:
    """Gradients accumulated against replaced

    PyTorch   optimizer.zero_grad(); for x, y in parts: (loss_fn(x, y) / len(parts)).backward()
    JAX       the sum of jax.grad(loss_fn)(params, x, y) over the parts, / len(parts)

    backward() adds to .grad, hence zero_grad(). Here a gradient is a value: the next one replaces
    it, and whoever wants a sum adds. The mean over equal parts of a batch is the whole batch's
    gradient; unequal parts must be weighted by their sizes.
    """
    w, b, x, targets = normals(seed, (5, 3), (3,), (8, 5), (8, 3))
    params, y = (w, b), (targets > 0).astype(jnp.float32)

    def batch_loss(params, x, y):
        return jax.vmap(lambda x, y: network_loss(*params, x, y))(x, y).mean()

    def mean_over_parts(cuts, sizes=None):
        parts = [grad_fn(params, x[i:j], y[i:j]) for i, j in itertools.pairwise(cuts)]
        return jax.tree.map(lambda *g: np.average(g, axis=0, weights=sizes), *parts)

    grad_fn = jax.jit(jax.grad(batch_loss))
    full, again = grad_fn(params, x, y), grad_fn(params, x, y)
    summed = jax.tree.map(jnp.add, full, again)
    equal, plain = mean_over_parts([0, 2, 4, 6, 8]), mean_over_parts([0, 6, 8])
    weighted = mean_over_parts([0, 6, 8], sizes=[6, 2])
    show("dL/db of the batch", full[1])
    show("dL/db, a second call", again[1])
    show("dL/db, the two added", summed[1])
    show("dL/db, mean of 2 + 2 + 2 + 2", equal[1])
    show("dL/db, mean of 6 + 2", plain[1])
    show("dL/db, weighted mean of 6 + 2", weighted[1])
    check("a second call replaces: the same bits", same_bits(full, again))
    check("adding accumulates: twice", same_bits(summed, jax.tree.map(lambda g: 2 * g, full)))
    check("equal parts: the mean is the batch's gradient", max_difference(equal, full) <= 1e-6)
    check("unequal parts: the plain mean is not", max_difference(plain, full) > 1e-6)
    check("... and the weighted mean is", max_difference(weighted, full) <= 1e-6)
    means = {"equal": equal, "plain": plain, "weighted": weighted}
    return {"batch": (params, x, y), "full": full, "summed": summed, **means}


def python_flow(x):
    if x < 0:
        x = -3 * x
    while x < 10:
        x = 2 * x
    return x


def lax_flow(x):
    x = jax.lax.cond(x < 0, lambda x: -3 * x, lambda x: x, x)
    return jax.lax.while_loop(lambda x: x < 10, lambda x: 2 * x, x)


def bounded_flow(x):
    x = jax.lax.cond(x < 0, lambda x: -3 * x, lambda x: x, x)
    return jax.lax.fori_loop(0, 4, lambda _, x: jnp.where(x < 10, 2 * x, x), x)


def first_line_of_error(kind: type[Exception], f: Callable) -> str:
    try:
        f(1.0)
    except kind as error:
        return str(error).splitlines()[0]
    raise CheckError(f"expected {kind.__name__}, and nothing was raised")


def flow(_seed: int) -> dict[str, Any]:
    """Control flow that changes with the input

    PyTorch   if x < 0: x = -3 * x
              while x < 10: x = 2 * x              the graph is built anew in every call
    JAX       the same Python outside jit;         jax.lax.cond and jax.lax.while_loop inside

    Outside jit x is a number, and Python decides. Under jit one program serves every x, so the
    decision is itself an operation. Reverse mode, which keeps every step, refuses a while_loop of
    any length; forward mode (jax.jvp) takes it, and a fori_loop of fixed length takes both.
    """
    xs = [1.0, 3.0, -1.0, 20.0]
    # Each x of `python` is traced on its own; the other two are compiled once for all of them.
    python = [jax.value_and_grad(python_flow)(x) for x in xs]
    forward = list(map(jax.jit(lambda x: jax.jvp(lax_flow, (x,), (1.0,))), xs))
    bounded = list(map(jax.jit(jax.value_and_grad(bounded_flow)), xs))
    print("        x   value   slope: Python   jvp of while_loop   grad of fori_loop")
    for x, (value, a), (_, b), (_, c) in zip(xs, python, forward, bounded, strict=True):
        print(f"   {x:6.1f}  {value:6.1f} {a:15.1f} {b:19.1f} {c:19.1f}")
    if_error = first_line_of_error(jax.errors.TracerBoolConversionError, jax.jit(python_flow))
    while_error = first_line_of_error(ValueError, jax.grad(lax_flow))
    print("   jit of Python's if:", *textwrap.wrap(if_error, 90), sep="\n      ")
    print("   grad of a while_loop:", *textwrap.wrap(while_error, 90), sep="\n      ")
    check("while_loop in forward mode: Python's values and slopes", forward == python)
    check("fori_loop in reverse mode: Python's values and slopes", bounded == python)
    slopes = {"python": python, "forward": forward, "bounded": bounded}
    return {**slopes, "xs": xs, "if_error": if_error, "while_error": while_error}


def vjp(seed: int) -> dict[str, Any]:
    """The vector-Jacobian product

    PyTorch   out = (inp + 1).pow(2).t(); out.backward(torch.ones_like(out), retain_graph=True)
    JAX       out, vjp_fn = jax.vjp(f, inp); (grad,) = vjp_fn(jnp.ones_like(out))

    What is not a scalar has a Jacobian J, and backward(v) is v J, without J ever being built.
    vjp_fn is an ordinary function: call it as often as you like, with no retain_graph, and nothing
    adds up. jax.jvp(f, (inp,), (t,)) is J t, by forward mode.
    """
    inp = jnp.eye(4, 5)
    u, t = normals(seed, (5, 4), (4, 5))

    def f(inp):
        return ((inp + 1) ** 2).T

    out, vjp_fn = jax.vjp(f, inp)
    (first,), (second,) = vjp_fn(jnp.ones_like(out)), vjp_fn(jnp.ones_like(out))
    jacobian, forward_jacobian = jax.jit(jax.jacrev(f))(inp), jax.jit(jax.jacfwd(f))(inp)
    (uj,), (_, jt) = vjp_fn(u), jax.jvp(f, (inp,), (t,))
    show("vjp of ones", first)
    show("vjp of ones, once more", second)
    show("shape of the Jacobian", f"{jacobian.shape}, {jacobian.size} numbers")
    check("the vjp of ones is 2 (inp + 1)", max_difference(first, 2 * (inp + 1)) <= 1e-6)
    check("the second call gives the same, not the sum", same_bits(first, second))
    check("vjp_fn(u) = u J", max_difference(uj, np.tensordot(u, jacobian, 2)) <= 1e-5)
    check("jvp(t) = J t", max_difference(jt, np.tensordot(jacobian, t, 2)) <= 1e-5)
    check("(u J) . t = u . (J t)", abs(np.vdot(uj, t) - np.vdot(u, jt)) <= 1e-4)
    check("jacrev = jacfwd", max_difference(jacobian, forward_jacobian) <= 1e-6)
    return {"ones": (first, second), "jacobian": jacobian, "vjp": (u, uj), "jvp": (t, jt)}


SECTIONS = (gradient, detach, no_grad, frozen, graph, accumulate, flow, vjp)


def main(config: Config) -> None:
    for number, section in enumerate(SECTIONS, 1):
        if config.section in ("all", section.__name__):
            title, _, explanation = inspect.getdoc(section).partition("\n\n")
            print(f"{number}. {title}\n{'=' * (len(title) + 3)}")
            print(textwrap.indent(explanation, "   "), end="\n\n")
            # Accelerators multiply float32 matrices with fewer bits unless told not to.
            with jax.default_matmul_precision("highest"):
                section(config.seed)
            print()
    print("All checks hold.")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
