"""The embedded demonstration: synthetic people, the tiny CLIP, minutes on two CPU cores.

  bash scripts/demo.sh
  python scripts/train.py --config configs/ccafl_demo.py --workdir runs/demo

Any folder in Market-1501 layout trains with the same recipe:

  python scripts/train.py --config configs/ccafl_demo.py --config.data.root=DIR --workdir W

`configs/ccafl_demo.py:smoke` runs every stage and phase in a few steps (does it run, not does it
learn); `configs/ccafl_demo.py:bench` takes four times the steps, up to half an hour;
`configs/ccafl_demo.py:ablation` is the recipe of scripts/ablate.py, half of the steps on half
of the people, with windows that open one after the other.

Small images, small batches and a short schedule need larger rates than the published ones; the
windows keep their order. The classifier learns ten times as fast, so that ICAL can start with
stage 3.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import to_config


def get_config(variant: str = "") -> ConfigDict:
    """All options of the demonstration; `variant` is "" or a key of `VARIANTS`."""
    if variant and variant not in VARIANTS:
        raise ValueError(
            f"configs/ccafl_demo.py:{variant}: choose {', '.join(VARIANTS)} or nothing"
        )
    config = to_config(CCAFLConfig())
    config.data.name = "synthetic"
    config.data.height, config.data.width = 64, 32
    config.data.synthetic_ids = 200
    config.model.weights = "tiny_clip"
    config.augment.pad = 4
    config.sampler.classes, config.sampler.images = 8, 8

    config.prompts.epochs = 15
    config.prompts.base_lr = 3.5e-3
    config.prompts.warmup_from = 1e-4
    config.prompts.min_lr = 1e-5

    config.schedule.epochs, config.schedule.iterations = 24, 80
    config.schedule.intra_epochs = 8.0
    config.schedule.text_start = 10.0
    config.schedule.ical_start, config.schedule.ical_end = 9.0, 24.0

    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_epochs = 2
    config.optimizer.milestones = (20,)
    config.optimizer.classifier_lr = 3.5e-3

    config.icdl.instances = 8
    config.ical.margin = 0.3
    # Strong colour casts move whole cameras: centring them, and refusing to join components that
    # share a camera, gives the association fewer and truer pairs to start from.
    config.association.method = "greedy_cc_cam"
    config.association.center_cameras = True
    config.association.rate = 1.0
    config.evaluation.every = 6
    if variant:
        VARIANTS[variant](config)
    return config


def shorten(config: ConfigDict) -> None:
    """A few steps of every phase."""
    config.prompts.epochs = 2
    config.schedule.epochs, config.schedule.iterations = 4, 3
    config.schedule.intra_epochs = 1.0
    config.schedule.text_start = 2.0
    config.schedule.ical_start, config.schedule.ical_end = 3.0, 4.0
    config.evaluation.every = 2
    config.data.synthetic_ids = 40


def lengthen(config: ConfigDict) -> None:
    """Four times the steps: a quarter of an hour on two quiet cores, longer on busy ones."""
    config.schedule.iterations *= 4


def separate(config: ConfigDict) -> None:
    """Few steps, and a window at a time, so that runs share what comes before a difference."""
    config.data.synthetic_ids = 100
    config.schedule.epochs, config.schedule.iterations = 20, 48
    config.schedule.intra_epochs = 6.0
    config.schedule.text_start = 8.0
    config.schedule.ical_start, config.schedule.ical_end = 12.0, 20.0
    config.optimizer.milestones = (17,)
    config.evaluation.every = 0


VARIANTS = {"smoke": shorten, "bench": lengthen, "ablation": separate}
