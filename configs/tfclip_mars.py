"""TF-CLIP on MARS, right by default.

  python scripts/train.py --config configs/tfclip_mars.py \
      --config.data.root=DIR --config.model.weights=CLIP_VIT_B16_DIR --workdir runs/tfclip_mars

Published (ViT-B/16): mAP 89.4, rank-1 93.0, rank-5 97.9, of the best epoch on the test set. Those
figures belong to the values of the release: `optimizer.rates=released` and
`augment.erase_place=size`. This recipe has no published figure.

The paper's other variants are options: `prompt.layout=paper` (no attention among identities),
`prompt.context=sequences`, `prompt.enabled=False`, `diffusion.enabled=False`. With a ResNet-50,
set `model.camera_embedding=False`; the supplement trains it for 120 epochs at 3.5e-4.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.tfclip.config import TFCLIPConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with the published settings for MARS."""
    return to_config(TFCLIPConfig())
