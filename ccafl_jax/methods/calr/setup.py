"""From options to a run: data set, pixels and image model."""

import logging
import pathlib

from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.methods.calr.model import image_model
from ccafl_jax.methods.calr.run import Run
from ccafl_jax.methods.files import open_images, require_root
from ccafl_jax.methods.run import Images

log = logging.getLogger("ccafl_jax")


def prepare_run(
    config: CALRConfig, *, workdir: pathlib.Path, root: str, kind: type[Run] = Run
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
    model, model_config = image_model(config)
    dataset = open_images(config.data, root, method="CALR")
    log.info("%s", dataset.summary())
    return kind(
        config,
        dataset=dataset,
        images=Images(train=dataset.train, test=dataset.query.join(dataset.gallery)),
        model=model,
        model_config=model_config,
        workdir=workdir,
    )
