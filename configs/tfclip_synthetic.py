"""TF-CLIP on walks of the embedded synthetic people, with the tiny CLIP's ResNet, on two CPU cores.

  bash scripts/demo.sh tfclip
  python scripts/train.py --config configs/tfclip_synthetic.py --workdir runs/tfclip

`configs/tfclip_synthetic.py:smoke` runs all parts in a few steps (does it run, not does it learn);
`configs/tfclip_synthetic.py:ablation` is the recipe of scripts/ablate_tfclip.py, fewer steps on
fewer people.

Small images, small batches and a short schedule need larger rates than the published ones. A ResNet
has no class token, so there is no camera embedding.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.tfclip.config import TFCLIPConfig
from ccafl_jax.options import to_config


def get_config(variant: str = "") -> ConfigDict:
    """All options of the demonstration; `variant` is "" or a key of `VARIANTS`."""
    if variant and variant not in VARIANTS:
        raise ValueError(
            f"configs/tfclip_synthetic.py:{variant}: choose {', '.join(VARIANTS)} or nothing"
        )
    config = to_config(TFCLIPConfig())
    config.data.name = "synthetic_tracklets"
    config.data.height, config.data.width = 64, 32
    config.data.synthetic_ids = 100
    config.model.weights = "tiny_clip"
    config.model.camera_embedding = False
    config.clips.frames = 4
    config.schedule.epochs, config.schedule.iterations = 10, 60
    config.optimizer.base_lr = 1e-4
    config.optimizer.warmup_epochs = 2
    config.optimizer.milestones = (8,)
    config.evaluation.every = 5
    if variant:
        VARIANTS[variant](config)
    return config


def shorten(config: ConfigDict) -> None:
    """A few steps of all parts."""
    config.data.synthetic_ids = 12
    config.schedule.epochs, config.schedule.iterations = 2, 3
    config.evaluation.every = 1


def separate(config: ConfigDict) -> None:
    """Fewer steps on fewer people, for studies of many runs."""
    config.data.synthetic_ids = 60
    config.schedule.epochs, config.schedule.iterations = 8, 40
    config.optimizer.milestones = (6,)
    config.evaluation.every = 0


VARIANTS = {"smoke": shorten, "ablation": separate}
