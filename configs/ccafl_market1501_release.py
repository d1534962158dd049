"""CCAFL on Market-1501 as the released code computes it, quirks included.

  python scripts/train.py --config configs/ccafl_market1501_release.py \
      --config.data.root=DIR --config.model.weights=CLIP_RN50_DIR --workdir runs/market1501_release

Published with this lineage: mAP 90.1, rank-1 96.1, rank-5 98.6, rank-10 99.1 (the README beside
the released weights says 96.0). It is most likely the best of the evaluations on the test set;
`summary.json` reports the last epoch.

What differs from configs/ccafl_market1501.py: the attention pool keeps being decayed while no loss
reaches it, the inter-camera label smoothing is divided by 4821, the learned prompt vectors are
shifted by one token over "person", and the neck starts from running statistics (0, 1).
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with the released values."""
    config = to_config(CCAFLConfig())
    config.published = "mAP 90.1, rank-1 96.1, rank-5 98.6, rank-10 99.1"
    config.published_on = "market1501"
    config.optimizer.idle = "decay"
    config.text.inter_denominator = 4821
    config.prompts.prefix_tokens = 5
    config.model.calibrate_neck = False
    config.evaluation.no_match = "zero"
    return config
