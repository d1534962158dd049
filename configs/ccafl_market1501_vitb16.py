"""CCAFL on Market-1501 with CLIP's ViT-B/16 in place of the ResNet-50.

  python scripts/train.py --config configs/ccafl_market1501_vitb16.py \
      --config.data.root=DIR --config.model.weights=CLIP_VIT_B16_DIR --workdir runs/market_vitb16

CCAFL was published with a ResNet-50; nothing is published for this recipe. Its rates and the
normalisation of images follow CLIP-ReID's ViT settings: 120 epochs of prompts; then a rate of 5e-6
after ten epochs of warm-up from a tenth of it, tenfold drops at half and at five sixths of the
run, weight decay 1e-4, and a mean and standard deviation of 0.5. The retrieval feature is the
class token beside its projection (768 + 512) after the BN neck. Losses, windows, batches and the
rest of the augmentation are those of configs/ccafl_market1501.py.

CLIP-ReID's two additions are options:

  --config.model.patch_stride=12           overlapping patches, 21 x 10 in place of 16 x 8
  --config.model.camera_embedding=True     a learned vector of the camera on the class token
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with CLIP-ReID's settings for ViT-B/16."""
    config = to_config(CCAFLConfig())
    config.augment.mean = config.augment.std = (0.5, 0.5, 0.5)
    config.model.tower = "vit"
    config.prompts.epochs = 120
    config.optimizer.base_lr = 5e-6
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_factor = 0.1
    config.optimizer.milestones = (40, 67)
    return config
