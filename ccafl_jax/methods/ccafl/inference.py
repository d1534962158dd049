"""A trained model from a run folder, without the CLIP weights it started from."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ccafl_jax.data.market1501 import load_market1501
from ccafl_jax.data.sources import load_images
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.features import feature_extractor, score
from ccafl_jax.models.clip import CLIP, ModifiedResNet, ResNetConfig
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.reid import CLIPReID
from ccafl_jax.options import from_mapping
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import FlatDict, split_model


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """An image model of a run.

    Attributes:
      config: the options it was trained with.
      graphdef, params, batch_stats: the model, see :mod:`ccafl_jax.training.state`.
      mesh: devices it is on.
      data_root: data set it was trained on.
      number: of the checkpoint.
    """

    config: CCAFLConfig
    graphdef: nnx.GraphDef
    params: FlatDict
    batch_stats: FlatDict
    mesh: Mesh
    data_root: str
    number: int

    def embed(self, images: np.ndarray) -> jax.Array:
        """Retrieval features: uint8[n, height, width, 3] -> float32[n, dim], L2-normalised."""
        extract = feature_extractor(
            self.graphdef, "embed", self.config, self.mesh, description="features"
        )
        return extract(self.params, self.batch_stats, images)


def vision_description(clip: CLIP) -> dict:
    """What is needed to build the image tower again, as JSON values."""
    vision = dataclasses.asdict(clip.config.vision) | {"embed_dim": clip.config.embed_dim}
    return json.loads(json.dumps(vision))


def load_trained(workdir: pathlib.Path, *, number: int | None = None) -> TrainedModel:
    """Loads a checkpoint of a run folder (default: the last).

    Raises:
      FileNotFoundError: no checkpoint there.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: train first, or check --workdir")
    checkpoints = Checkpoints(folder)
    number = checkpoints.latest() if number is None else number
    meta, state = checkpoints.restore_meta(number), checkpoints.restore(number)
    checkpoints.close()
    config = from_mapping(CCAFLConfig, meta["config"])
    mesh = make_mesh(config.devices if config.devices <= jax.device_count() else 0)
    params, batch_stats = replicate((state["params"], state["batch_stats"]), mesh)
    return TrainedModel(
        config=config,
        graphdef=_graphdef(meta["vision"], config),
        params=dict(params),
        batch_stats=dict(batch_stats),
        mesh=mesh,
        data_root=meta["data_root"],
        number=int(number),
    )


def evaluate_model(model: TrainedModel, *, root: str = "") -> dict[str, float]:
    """Figures of a trained model on the test set of `root` (default: its own data set)."""
    dataset = load_market1501(root or model.data_root, for_training=False)
    data = model.config.data
    paths = np.concatenate([dataset.query.path, dataset.gallery.path])
    features = model.embed(load_images(paths, data.height, data.width))
    return score(features, dataset, no_match=model.config.evaluation.no_match)


def _graphdef(vision: dict, config: CCAFLConfig) -> nnx.GraphDef:
    sizes = dict(vision)
    embed_dim = sizes.pop("embed_dim")
    tower = ResNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})
    compute = Compute(dtype=jnp.dtype(config.model.compute_dtype))

    def build() -> CLIPReID:
        visual = ModifiedResNet(tower, out_features=embed_dim, compute=compute, rngs=nnx.Rngs(0))
        return CLIPReID(visual, bn_group=config.model.bn_group)

    return split_model(build())[0]
