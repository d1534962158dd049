"""A small world in which every loss can be called at once, for the tests of common behaviour."""

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax import losses

CAM_OF = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2], np.int32)
PI = np.array([0, 1, 1, 0, 2, -1, 0, 2, -1], np.int32)
DIM, JOINT, SLOTS, CLUSTERS = 8, 6, 4, 5


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def world(seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Memories, texts and labels of nine classes in three cameras; one cluster slot is unused."""
    rng = np.random.default_rng(seed)
    arrays = {
        "cent": unit(rng, 9, DIM),
        "inst": unit(rng, 9, SLOTS, DIM),
        "text": rng.normal(size=(9, JOINT)),
        "mu": unit(rng, CLUSTERS, DIM),
        "cluster_text": rng.normal(size=(CLUSTERS, JOINT)),
    }
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    slots = np.arange(SLOTS) < np.array([4, 2, 1, 3, 4, 1, 2, 3, 4])[:, None]
    return arrays | {"cam_of": CAM_OF, "pi": PI, "k_used": np.arange(CLUSTERS) < 3, "slots": slots}


def inputs(rows: int, seed: int = 1, dtype=np.float32) -> tuple[dict, dict]:
    """What is differentiated, and the labels of the rows."""
    rng = np.random.default_rng(seed)
    x = {
        "f": unit(rng, rows, DIM),
        "g": rng.normal(size=(rows, JOINT)),
        "t": rng.normal(size=(rows, JOINT)),
        "W": rng.normal(size=(9, DIM)),
    }
    labels = {"y": rng.integers(0, 9, rows).astype(np.int32), "valid": np.ones(rows, bool)}
    return {name: array.astype(dtype) for name, array in x.items()}, labels


def all_losses(x: dict, rows: dict, const: dict) -> dict[str, jax.Array]:
    """Every loss of the package, by name."""
    f, g, y, valid = x["f"], x["g"], rows["y"], rows["valid"]
    cam_of = const["cam_of"]
    camera = jnp.asarray(cam_of)[y]
    cluster = jnp.where(valid, jnp.asarray(const["pi"])[y], -1)
    kept = jnp.where(valid, y, -1)
    weight = losses.camera_row_weights(camera, valid)
    per_camera = (losses.camera_mask(camera, cam_of), weight)
    k_mask = jnp.broadcast_to(const["k_used"], (y.shape[0], CLUSTERS))
    memory = (const["cent"], const["inst"], cam_of, valid)
    return {
        "supcon_cam": losses.supcon_cam(g, x["t"], y, camera, valid),
        "supcon_batch": losses.supcon_cam(g, x["t"], y, camera, valid, scope="batch"),
        "i2t_intra": losses.i2t_ce(g, const["text"], y, *per_camera),
        "i2t_inter": losses.i2t_ce(g, const["cluster_text"], cluster, k_mask, denom=4821),
        "icdl": losses.icdl(f, y, *memory)[0],
        "icdl_all": losses.icdl(
            f, y, *memory, instance_valid=const["slots"], reduce="mean_cam_mean"
        )[0],
        "triplet_cam": losses.batch_triplet(f, y, valid, camera),
        "triplet_inter": losses.batch_triplet(f, cluster),
        "triplet_memory": losses.memory_triplet(f, y, const["cent"], cam_of, valid),
        "inter": losses.inter_contrast(f, cluster, const["mu"], const["k_used"]),
        "gid": losses.gid(f, y, x["W"], valid),
        "ical": losses.ical(f, y, x["W"], const["pi"], cam_of, valid),
        "clips": sum(losses.clip_losses({"f": f}, {"f": 9 * f, "memory": f}, kept).values()),
        "camera_adversary": losses.camera_adversary(f, camera, x["W"][:3], valid),
    }


def values_and_gradients(x: dict, rows: dict, const: dict) -> tuple[dict, dict]:
    """Values by name, and gradients by name and input: one program for all losses."""
    return all_losses(x, rows, const), jax.jacrev(all_losses)(x, rows, const)


NAMES = sorted(jax.eval_shape(all_losses, *inputs(16), world()))
