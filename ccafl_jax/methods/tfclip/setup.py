"""From options to a run: data set, pixels and video model."""

import logging
import pathlib

import numpy as np

from ccafl_jax.methods.files import open_tracklets, require_root, weights_directory
from ccafl_jax.methods.run import Images
from ccafl_jax.methods.tfclip.config import TFCLIPConfig
from ccafl_jax.methods.tfclip.model import video_model
from ccafl_jax.methods.tfclip.run import Run
from ccafl_jax.methods.towers import load_towers

log = logging.getLogger("ccafl_jax")


def prepare_run(
    config: TFCLIPConfig, *, workdir: pathlib.Path, root: str, kind: type[Run] = Run
) -> Run:
    """Reads everything a run needs.

    Args:
      config: options.
      workdir: folder of the run.
      root: folder of the data set; `config.data.root`, or what the caller made in its place.
      kind: what to make of it, for experiments that change a part of the run.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    require_root(config.data, root)
    clip = load_towers(config, weights_directory(config.model.weights, "a CLIP checkpoint"))
    selection = {"split": config.data.split, "orientation": config.data.orientation}
    dataset = open_tracklets(
        config.data, root, method="TF-CLIP", selection=selection if config.data.split else {}
    )
    log.info("%s", dataset.summary())
    model, model_config = video_model(
        clip,
        config,
        classes=len(np.unique(dataset.train.pid)),
        cameras=len(dataset.camera_codes),
    )
    return kind(
        config,
        dataset=dataset,
        images=Images(train=dataset.train, test=dataset.query.join(dataset.gallery)),
        model=model,
        model_config=model_config,
        workdir=workdir,
    )
