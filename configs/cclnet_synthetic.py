"""CCLNet on the embedded synthetic people in visible and infrared light, on two CPU cores.

  bash scripts/demo.sh cclnet
  python scripts/train.py --config configs/cclnet_synthetic.py --workdir runs/cclnet

`configs/cclnet_synthetic.py:smoke` runs all stages and every phase in a few steps (does it run, not
does it learn); `configs/cclnet_synthetic.py:regdb` has the layout of RegDB in place of SYSU-MM01's;
`configs/cclnet_synthetic.py:ablation` is the recipe of scripts/ablate_cclnet.py, of fewer steps.

Small images, small batches and a short schedule need larger rates than the published ones.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.options import to_config


def get_config(variant: str = "") -> ConfigDict:
    """All options of the demonstration; `variant` is "" or a key of `VARIANTS`."""
    if variant and variant not in VARIANTS:
        raise ValueError(
            f"configs/cclnet_synthetic.py:{variant}: choose {', '.join(VARIANTS)} or nothing"
        )
    config = to_config(CCLNetConfig())
    config.data.name = "synthetic_sysumm01"
    config.data.height, config.data.width = 64, 32
    config.data.synthetic_ids = 60
    config.model.weights = "tiny_clip_infrared"
    config.augment.pad = 4
    config.clustering.k1, config.clustering.k2, config.clustering.eps = 10, 3, 0.5
    config.sampler.classes, config.sampler.images = 4, 8
    config.prompts.epochs, config.prompts.base_lr = 8, 3e-3
    config.schedule.prepare_epochs = config.schedule.train_epochs = 14
    config.schedule.iterations = 60
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_epochs, config.optimizer.milestones = 2, (12,)
    config.swap.start = 5
    config.evaluation.every = 5
    if variant:
        VARIANTS[variant](config)
    return config


def shorten(config: ConfigDict) -> None:
    """A few steps of every phase."""
    config.data.synthetic_ids = 12
    config.prompts.epochs = 2
    config.schedule.prepare_epochs = config.schedule.train_epochs = 2
    config.schedule.iterations = 3
    config.swap.start = 1
    config.evaluation.every = 1


def as_regdb(config: ConfigDict) -> None:
    """Ten visible and ten thermal images of each person."""
    config.data.name = "synthetic_regdb"


def separate(config: ConfigDict) -> None:
    """Fewer steps, for studies of many runs."""
    config.schedule.iterations = 40
    config.evaluation.every = 0


VARIANTS = {"smoke": shorten, "regdb": as_regdb, "ablation": separate}
