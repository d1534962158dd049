"""Market-1501's whole schedule on small synthetic images: the recipe of scripts/rehearse.py.

  python scripts/rehearse.py --names market_train_names.txt --workdir runs/rehearsal

Epochs, steps, batches, rates, windows and memories are those of configs/ccafl_market1501.py; images
are 64x32, and the tower is the tiny CLIP.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options of the rehearsal."""
    config = to_config(CCAFLConfig())
    config.data.height, config.data.width = 64, 32
    config.model.weights = "tiny_clip"
    config.augment.pad = 4
    return config
