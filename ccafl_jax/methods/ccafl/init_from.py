"""A run that starts from the model of another one, as when a camera is added to a network.

The image tower and its heads are taken as they are. What belongs to a class or to a camera is taken
by name, camera code and identity, as a class has another number in every training set. Optimisers
and the count of steps are those of a fresh run.
"""

import copy
import dataclasses
import logging
import os
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.methods.ccafl.progress import tables_by_class
from ccafl_jax.methods.ccafl.prompts import PromptState
from ccafl_jax.methods.ccafl.state import CCAFLState
from ccafl_jax.methods.metadata import differences
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.description import check_digest, check_format
from ccafl_jax.training.storage import open_path

if TYPE_CHECKING:
    from etils import epath

CAMERAS = "camera_embedding"
"""The parameter with a row for each camera."""

_CURE = (
    "a run starts from one of the same tower, image size and strides: set model.weights, "
    "model.patch_stride, data.height and data.width as there, or leave init_from empty"
)

log = logging.getLogger("ccafl_jax")

Name = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A checkpoint of another run.

    Attributes:
      where: names it in messages.
      meta: its description.
      tree: its arrays, as `progress.pack` makes them, on the host.
    """

    where: str
    meta: Mapping[str, Any]
    tree: Mapping[str, Any]


def read_earlier(folder: str | os.PathLike, *, workdir: str | os.PathLike) -> Earlier:
    """Reads the newest undamaged checkpoint of a run, finished or not.

    Args:
      folder: its work folder, or the folder of its checkpoints; on a disk or in an object store.
      workdir: of the run that starts from it.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: it is the folder of this run, of another format, damaged, or no run of CCAFL.
    """
    path = _checkpoints_of(folder)
    if os.path.realpath(path) == os.path.realpath(_checkpoints_of(workdir)):
        raise ValueError(
            f"init_from {folder} is the folder of this run: choose another --workdir, or go on "
            "with --resume and without init_from"
        )
    with Checkpoints(path) as checkpoints:
        number = checkpoints.latest()
        if number is None:
            raise FileNotFoundError(
                f"init_from {folder} holds no complete checkpoint: name the --workdir of a CCAFL "
                "run that has done an epoch, or its checkpoints folder"
            )
        meta = checkpoints.restore_meta(number)
        where = f"{folder}, checkpoint {number}"
        check_format(meta, where)
        if meta["method"] != "ccafl":
            raise ValueError(
                f"init_from {where} is a model only ({meta['method']}), no CCAFL run: name the "
                "--workdir of one"
            )
        tree = checkpoints.restore(number)
    check_digest(meta, tree["params"], tree["batch_stats"], where=where)
    return Earlier(where, meta, tree)


def _checkpoints_of(folder: str | os.PathLike) -> "epath.Path":
    path = open_path(os.path.expanduser(folder))
    inside = path / "checkpoints"
    return inside if from_first(inside.is_dir) else path


def take_over(
    earlier: Earlier,
    run: Mapping[str, Any],
    state: CCAFLState,
    prompt_state: PromptState,
    *,
    held_out: Collection[Name] = (),
) -> tuple[CCAFLState, PromptState]:
    """The states of a fresh run with what an earlier one learned.

    Args:
      earlier: where it is from.
      run: description of the run that starts, from `metadata.describe_run`.
      state: fresh.
      prompt_state: fresh.
      held_out: names of the classes that this run holds out, see `names_of`.

    Returns:
      The states with other parameters, statistics, prompts and rows of the classifier; what the
      earlier run does not know, and everything of the optimisers, is as it was.

    Raises:
      ValueError: another model; the message names an array and both shapes, or what differs.
    """
    fresh, found = dict(state.params), dict(earlier.tree["params"])
    embeddings = fresh.pop(CAMERAS, None), found.pop(CAMERAS, None)
    params = fitting(fresh, found, where=earlier.where)
    batch_stats = fitting(state.batch_stats, earlier.tree["batch_stats"], where=earlier.where)
    cameras, cameras_known = _camera_rows(earlier, run, *embeddings)
    _check_model(earlier, run)
    here, there = names_of(run), _known_names(earlier, run)
    rows = shared_rows(here, there)
    prompts, classifier = tables_by_class(earlier.tree)
    state = state.replace(
        params={name: (params | cameras)[name] for name in state.params},
        batch_stats=batch_stats,
        classifier=with_rows_of(
            state.classifier, classifier, rows, name="classifier", where=earlier.where
        ),
    )
    prompt_state = dataclasses.replace(
        prompt_state,
        prompts=with_rows_of(
            prompt_state.prompts, prompts, rows, name="prompts", where=earlier.where
        ),
    )
    known = len(rows[0])
    log.info(
        "init_from %s: image tower and heads; of %d classes %d are known there and keep prompts "
        "and rows of the classifier, %d start afresh; %d classes of it are left out%s",
        earlier.where,
        len(here),
        known,
        len(here) - known,
        earlier.meta["classes"] - known,
        cameras_known,
    )
    _warn(earlier, run, (set(held_out) & set(there)) - {None})
    return state, prompt_state


def names_of(description: Mapping[str, Any]) -> list[Name | None]:
    """The camera code and identity of every class of a run, in its order.

    A class whose identity was made up (`local_identities`) has no name: in another run the same
    number may be another person.

    Args:
      description: with the key "class_names", from `metadata.class_names`.
    """
    names = description["class_names"]
    return [
        (camera, identity) if identity >= 0 else None
        for camera, identity in zip(names["camera"], names["identity"], strict=True)
    ]


def shared_rows(here: Sequence[Hashable], there: Sequence[Hashable]) -> np.ndarray:
    """Where two tables have the same names: int[2, k], rows of the first and of the second.

    Rows whose name is None have no counterpart.
    """
    row_of = {name: row for row, name in enumerate(there) if name is not None}
    pairs = [(row, row_of[name]) for row, name in enumerate(here) if name in row_of]
    return np.asarray(pairs, np.int64).reshape(-1, 2).T


def with_rows_of(
    fresh: jax.Array, found: np.ndarray, rows: np.ndarray, *, name: str, where: str
) -> jax.Array:
    """A table with some of its rows taken from another one.

    Args:
      fresh: [n, ...].
      found: [m, ...], with rows of the same shape.
      rows: int[2, k], from :func:`shared_rows`.
      name: of the table, in messages.
      where: names the other one in messages.

    Raises:
      ValueError: rows of another shape.
    """
    if np.shape(found)[1:] != fresh.shape[1:]:
        raise ValueError(_other_shape(name, np.shape(found), fresh.shape, where))
    here, there = rows
    return fresh.at[here].set(jnp.asarray(np.asarray(found)[there], fresh.dtype))


def fitting(
    fresh: Mapping[str, Any], found: Mapping[str, Any], *, where: str
) -> dict[str, np.ndarray]:
    """The arrays `found`, if they have the names and shapes of the fresh ones.

    Args:
      fresh: by name.
      found: by name.
      where: they are from, in messages.

    Raises:
      ValueError: they have others.
    """
    for name in sorted(fresh.keys() | found.keys()):
        shapes = [np.shape(part[name]) if name in part else None for part in (found, fresh)]
        if shapes[0] != shapes[1]:
            raise ValueError(_other_shape(name, *shapes, where))
    return {name: np.asarray(found[name], value.dtype) for name, value in fresh.items()}


def _other_shape(name: str, there: tuple | None, here: tuple | None, where: str) -> str:
    words = ["absent" if shape is None else f"of shape {shape}" for shape in (there, here)]
    return f"init_from {where}: {name} is {words[0]} there and {words[1]} here; {_CURE}"


def _camera_rows(
    earlier: Earlier, run: Mapping[str, Any], fresh: jax.Array | None, found: np.ndarray | None
) -> tuple[dict[str, jax.Array], str]:
    """The camera embedding, if there is one, and words on where its rows are from."""
    if fresh is None:
        if found is not None:
            raise ValueError(
                f"init_from {earlier.where}: {CAMERAS} is of shape {found.shape} there and absent "
                "here; set model.camera_embedding=True, or leave init_from empty"
            )
        return {}, ""
    if found is None:
        return {CAMERAS: fresh}, "; the camera embedding starts afresh"
    rows = shared_rows(run["camera_codes"], earlier.meta["camera_codes"])
    taken = with_rows_of(fresh, found, rows, name=CAMERAS, where=earlier.where)
    total = len(run["camera_codes"])
    return {CAMERAS: taken}, f"; {len(rows[0])} of {total} cameras keep their embedding"


def _check_model(earlier: Earlier, run: Mapping[str, Any]) -> None:
    """Finds what shapes do not tell, such as the activation."""
    models = [copy.deepcopy(description["model"]) for description in (earlier.meta, run)]
    cameras = [model["heads"].pop("cameras") for model in models]
    if not all(cameras):
        for model in models:
            del model["heads"]["camera_scale"]
    if found := differences(*models, "model."):
        raise ValueError(f"init_from {earlier.where}: {found[0]}; {_CURE}")


def _known_names(earlier: Earlier, run: Mapping[str, Any]) -> list[Name | None]:
    """Names of the classes of the earlier run; none where it does not tell."""
    if "class_names" in earlier.meta:
        return names_of(earlier.meta)
    same = (earlier.meta.get(key) == run[key] for key in ("class_table", "camera_codes"))
    if all(same):
        return names_of(run)
    log.warning(
        "init_from %s does not name its classes, as an older version wrote it: all prompts and "
        "rows of the classifier start afresh",
        earlier.where,
    )
    return []


def _warn(earlier: Earlier, run: Mapping[str, Any], seen: Collection[Name]) -> None:
    weights = [part["config"]["model"]["weights"] for part in (earlier.meta, run)]
    if weights[0] != weights[1]:
        log.warning(
            "init_from %s: model.weights is %s there and %s here: prompts of another text tower "
            "are of no use",
            earlier.where,
            *weights,
        )
    found = differences(earlier.meta["preprocess"], run["preprocess"], "preprocess.")
    if found:
        log.warning("init_from %s: %s: its features are others", earlier.where, ", ".join(found))
    if seen:
        log.warning(
            "init_from %s was trained on %d of the held-out classes, whose figures are no alarm "
            "then: use its seed and data.val_fraction",
            earlier.where,
            len(seen),
        )
