"""CCAFL on Market-1501 with only what the paper's text and figure show.

  python scripts/train.py --config configs/ccafl_market1501_paper_min.py \
      --config.data.root=DIR --config.model.weights=CLIP_RN50_DIR --workdir runs/market1501_min

No triplets, and ICAL without margin and without inflated same-camera negatives. No figure is
published for exactly this recipe.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, reduced to the text and the figure."""
    config = to_config(CCAFLConfig())
    config.triplet.enabled = False
    config.ical.margin = 0.0
    config.ical.inflation = 0.0
    return config
