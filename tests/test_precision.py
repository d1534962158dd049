"""Every float32 contraction of losses, memories and similarities asks for full precision.

CPUs compute in full float32 whatever is asked, so a forgotten precision= shows only here.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr

from ccafl_jax import losses, memory
from ccafl_jax.evaluation import device_ranks
from ccafl_jax.neighbors import similarity, top_k
from ccafl_jax.pseudo_labels import matching
from tests.losses.all_losses import NAMES, all_losses, inputs, world

HIGHEST = jax.lax.Precision.HIGHEST


def contractions(jaxpr: Jaxpr) -> Iterator[tuple[str, bool]]:
    """Each dot and convolution, inner programs included: its name, and whether it is full."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            asked = equation.params["precision"]
            asked = asked if isinstance(asked, tuple) else (asked, asked)
            narrow = all(v.aval.dtype.itemsize < 4 for v in equation.invars)
            yield equation.primitive.name, narrow or asked == (HIGHEST, HIGHEST)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from contractions(inner)


def _check(function, *args) -> int:
    found = list(contractions(jax.make_jaxpr(function)(*args).jaxpr))
    assert all(full for _, full in found), found
    return len(found)


@pytest.mark.parametrize("name", NAMES)
def test_losses(name):
    x, rows = inputs(16)
    const = world()
    assert _check(lambda x: all_losses(x, rows, const)[name], x) > 0
    grads = jax.grad(lambda x: all_losses(x, rows, const)[name])
    assert _check(grads, x) > 0


def test_supcon_with_its_defaults():
    x, rows = inputs(16)
    both = jax.value_and_grad(lambda g: losses.supcon(g, x["t"], rows["y"], rows["y"]))
    assert _check(both, x["g"]) >= 2


@pytest.mark.parametrize("update", [memory.update_mean, memory.update_hard, memory.update_each])
def test_memory(update):
    x, rows = inputs(16)
    found = _check(lambda f: update(world()["cent"], f, rows["y"]), x["f"])
    assert found == (1 if update is memory.update_mean else 0)
    _check(lambda f: memory.class_means(f, rows["y"], 9), x["f"])
    _check(lambda f: memory.update_instances(world()["inst"], f, rows["y"]), x["f"])


def test_matching():
    f = np.ones((64, 4), np.float32)
    assert _check(matching._similarities, f, f) == 1
    labels = np.arange(64)
    assert _check(lambda f: memory.swap_matched(f, f, labels, labels, labels), f) == 0


@pytest.mark.parametrize("sort", [False, True])
def test_similarities(sort):
    f, bias = np.ones((64, 4), np.float32), np.zeros(64, np.float32)
    assert _check(similarity._product, f, f) == 1
    assert _check(lambda f: top_k._tile(f, f, bias, bias, worst=True), f) == 1
    terms = bias + 1, np.zeros(4, np.float32)
    every = np.arange(64)
    mesh = similarity.local_mesh()
    search = functools.partial(top_k._block_top_k, size=64, mesh=mesh, k=2, group=4)
    assert _check(lambda f: search(f, every, *terms, f, bias), f) == 1
    whole, lists = bias.astype(np.int32), np.zeros((64, 2), np.int32)
    options = {"top": 2, "collapse": True, "sort": sort}

    def ranks(f):
        query = (f, terms[0], np.zeros((64, 2), np.int32), lists, whole, lists)
        gallery = (terms[1], f, bias, np.zeros((1, 64), np.int32), whole, 64, 2)
        return device_ranks._device_ranks(*query, *gallery, **options)

    assert _check(ranks, f) == 1


def test_the_walk_finds_what_is_forgotten():
    a = np.ones((2, 2), np.float32)

    def forgotten(x):
        return jax.lax.scan(lambda carry, _: (jnp.dot(carry, carry), None), x, None, length=2)[0]

    found = list(contractions(jax.make_jaxpr(jax.jit(forgotten))(a).jaxpr))
    assert found and not any(full for _, full in found)
    image, kernel = np.ones((1, 4, 4, 1), np.float32), np.ones((2, 2, 1, 1), np.float32)

    def convolution(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert [full for _, full in contractions(jax.make_jaxpr(convolution)(image).jaxpr)] == [False]
