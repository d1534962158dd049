"""CALR on the embedded synthetic people, with the tiny CLIP's image tower, on two CPU cores.

  bash scripts/demo.sh calr
  python scripts/train.py --config configs/calr_synthetic.py --workdir runs/calr

`configs/calr_synthetic.py:smoke` runs both stages and every phase in a few steps (does it run, not
does it learn); `configs/calr_synthetic.py:ablation` is the recipe of scripts/ablate_calr.py, the
same without evaluations on the way.

Small images, small batches and a short schedule need larger rates than the published ones.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.options import to_config


def get_config(variant: str = "") -> ConfigDict:
    """All options of the demonstration; `variant` is "" or a key of `VARIANTS`."""
    if variant and variant not in VARIANTS:
        raise ValueError(
            f"configs/calr_synthetic.py:{variant}: choose {', '.join(VARIANTS)} or nothing"
        )
    config = to_config(CALRConfig())
    config.data.name = "synthetic"
    config.data.height, config.data.width = 64, 32
    config.data.synthetic_ids = 200
    config.model.weights = "tiny_clip"
    config.augment.pad = 4
    config.local.epochs, config.local.iterations = 3, 30
    config.sampler.classes, config.sampler.images = 8, 8
    config.schedule.epochs, config.schedule.iterations = 20, 80
    config.optimizer.base_lr = 1e-3
    config.optimizer.milestones = (16,)
    config.evaluation.every = 5
    if variant:
        VARIANTS[variant](config)
    return config


def shorten(config: ConfigDict) -> None:
    """A few steps of every phase."""
    config.data.synthetic_ids = 40
    config.local.epochs, config.local.iterations = 2, 2
    config.schedule.epochs, config.schedule.iterations = 4, 3
    config.alignment.epochs = 2
    config.contrast.weights_from = 3
    config.evaluation.every = 2


def separate(config: ConfigDict) -> None:
    """Figures of the end alone, for studies of many runs."""
    config.evaluation.every = 0


VARIANTS = {"smoke": shorten, "ablation": separate}
