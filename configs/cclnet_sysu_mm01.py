"""CCLNet on SYSU-MM01, right by default.

  python scripts/train.py --config configs/cclnet_sysu_mm01.py \
      --config.data.root=DIR --config.model.weights=CLIP_DIR --workdir runs/cclnet_sysu_mm01

DIR holds cam1 to cam6 and exp, and CLIP_DIR a CLIP RN50. The published figures are in
docs/cclnet.md; they belong to the values of the release (`swap.aliased`, `sampler.draws=released`,
`model.calibrate_neck=False`). This recipe has no published figure.

The figures of training are those of all-search with one shot; those of indoor search are made with
--config.evaluation.mode=indoor, and those of ten shots with --config.evaluation.shots=10.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with the published settings for SYSU-MM01."""
    return to_config(CCLNetConfig())
