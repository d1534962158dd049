"""One whole published training iteration, composed of the package's losses and updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ccafl_jax import losses, memory
from ccafl_jax.numerics import l2_normalize
from tests.comparison import assert_close
from tests.golden_data import golden

DATA = golden("14_trainer_market1501_s0")
SLOTS = int(DATA["num_instances"])
CAM_OF = np.repeat(np.arange(3), DATA["id_count_each_cam"])


def _hybrid(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Banks by camera [3, 3 + 3 * slots, dim] as centroids [9, dim] and instances [9, slots, dim].

    Row 3 + i + 3 * k of a camera's bank is slot k of its class i.
    """
    inst = flat[:, 3:].reshape(3, SLOTS, 3, -1).swapaxes(1, 2)
    return flat[:, :3].reshape(9, -1), inst.reshape(9, SLOTS, -1)


def _classifier_step(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """GID on the features: its loss, and the classifier after one Adam step with coupled L2."""
    optimizer = optax.chain(
        optax.add_decayed_weights(5e-4), optax.scale_by_adam(), optax.scale(-3.5e-4)
    )
    W = jnp.asarray(DATA["classifier_weight"])
    loss, grad = jax.value_and_grad(lambda W: losses.gid(x, DATA["g_labels"], W))(W)
    update, _ = optimizer.update(grad, optimizer.init(W), W)
    return loss, optax.apply_updates(W, update)


def _intra(x: jax.Array, g: jax.Array, *, text: bool) -> jax.Array:
    y, camera = DATA["g_labels"], DATA["cams"]
    cent, inst = _hybrid(DATA["cam_memory"])
    loss = losses.icdl(x, y, cent, inst, CAM_OF, w=0.6)[0]
    loss += losses.memory_triplet(x, y, cent, CAM_OF)
    loss += losses.batch_triplet(x, y, None, camera)
    if text:
        mask = losses.camera_mask(camera, CAM_OF)
        weight = losses.camera_row_weights(camera)
        loss += losses.i2t_ce(g, DATA["cam_text"].reshape(9, -1), y, mask, weight)
    return loss


def _inter(x: jax.Array, g: jax.Array, W: jax.Array, *, text: bool, adversary: bool) -> jax.Array:
    y, pi = DATA["g_labels"], DATA["pseudo_labels"]
    loss = losses.inter_contrast(x, pi[y], DATA["cluster_memory"])
    loss += losses.batch_triplet(x, pi[y])
    if text:
        loss += losses.i2t_ce(g, DATA["cluster_text"], pi[y], denom=4821)
    if adversary:
        loss += losses.ical(x, y, W, pi, CAM_OF, m=0.7)
    return loss


@functools.cache
def _iteration(intra: bool, text: bool, adversary: bool):
    y, pi = DATA["g_labels"], DATA["pseudo_labels"]

    def objective(feat, g):
        x = l2_normalize(feat)
        gid_loss, W = _classifier_step(x)
        if intra:
            loss = _intra(x, g, text=text)
        else:
            loss = _inter(x, g, W, text=text, adversary=adversary)
        return loss, (x, gid_loss, W)

    @jax.jit
    def iteration(feat, g):
        (loss, (x, gid_loss, W)), grads = jax.value_and_grad(objective, (0, 1), has_aux=True)(
            feat, g
        )
        if intra:
            cent, inst = _hybrid(DATA["cam_memory"])
            new = memory.update_mean(cent, x, y), memory.update_instances(inst, x, y)
        else:
            new = memory.update_hard(DATA["cluster_memory"], x, pi[y])
        return loss, gid_loss, W, grads, new

    return iteration


@pytest.mark.parametrize(
    "name, text, adversary",
    [
        ("intra_text", True, False),
        ("intra_notext", False, False),
        ("inter_e5", False, False),
        ("inter_e12", True, False),
        ("inter_e45", True, True),
        ("inter_e55", True, False),
    ],
)
def test_iteration_published(name, text, adversary):
    intra = name.startswith("intra")
    iteration = _iteration(intra, text, adversary)
    loss, gid_loss, W, (grad_feat, grad_g), new = iteration(DATA["feat"], DATA["f_proj"])
    assert_close(loss, DATA[f"{name}_loss"], 1e-5)
    assert_close(gid_loss, DATA[f"{name}_gid_loss"], 1e-5)
    # Tighter than 1e-5: the whole step is 3.5e-4 long.
    assert_close(W, DATA[f"{name}_classifier_weight_after"], 1e-7)
    assert_close(grad_feat, DATA[f"{name}_grad_feat"], 1e-5)
    assert_close(grad_g, DATA[f"{name}_grad_f_proj"], 1e-5)
    if intra:
        for actual, expected in zip(new, _hybrid(DATA[f"{name}_cam_memory_after"]), strict=True):
            assert_close(actual, expected, 1e-6)
    else:
        assert_close(new, DATA[f"{name}_cluster_memory_after"], 1e-6)
