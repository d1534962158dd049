"""CALR on VeRi-776, right by default.

  python scripts/train.py --config configs/calr_veri776.py \
      --config.data.root=DIR --config.model.weights=RESNET_DIR --workdir runs/calr_veri776

RESNET_DIR is the folder of an ImageNet ResNet-50, or of an IBN-ResNet-50-a. The published figures
are in docs/calr.md; they belong to the values of the release (`refinement.pivot=last`,
`alignment.loss=released` with weight 1, `model.bn_group=64`). This recipe has no published figure.

Vehicles are wide: images are 224x224. Copies of the queries lie among the test images, and the rule
that leaves out images of the query's own camera removes them.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with the published settings for VeRi-776."""
    config = to_config(CALRConfig())
    config.data.name = "veri776"
    config.data.height, config.data.width = 224, 224
    config.schedule.iterations = 400
    return config
