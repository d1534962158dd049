"""CCLNet on RegDB, right by default: one model for each of ten splits.

  for split in 1 2 3 4 5 6 7 8 9 10; do
    python scripts/train.py --config configs/cclnet_regdb.py --config.data.split=$split \
        --config.data.root=DIR --config.model.weights=CLIP_DIR --workdir runs/cclnet_regdb_$split
  done
  python scripts/average.py runs/cclnet_regdb_*

DIR holds Visible, Thermal and idx, and CLIP_DIR a CLIP RN50. Published figures are means over the
ten splits; the release trains on SYSU-MM01 alone, and the paper's settings for RegDB are not known.
The distance of clusters is that of other systems of this kind. This recipe has no published figure.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with settings for RegDB."""
    config = to_config(CCLNetConfig())
    config.data.name = "regdb"
    config.clustering.eps = 0.3
    return config
