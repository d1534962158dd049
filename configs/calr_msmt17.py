"""CALR on MSMT17, version 1, right by default.

  python scripts/train.py --config configs/calr_msmt17.py \
      --config.data.root=DIR --config.model.weights=RESNET_DIR --workdir runs/calr_msmt17

RESNET_DIR is the folder of an ImageNet ResNet-50, or of an IBN-ResNet-50-a. The published figures
are in docs/calr.md; they belong to the values of the release (`refinement.pivot=last`,
`alignment.loss=released` with weight 1, `model.bn_group=64`). This recipe has no published figure.

Version 2 has the same pictures with faces blurred: --config.data.name=msmt17_v2.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with the published settings for MSMT17, version 1."""
    config = to_config(CALRConfig())
    config.data.name = "msmt17_v1"
    config.schedule.iterations = 400
    return config
