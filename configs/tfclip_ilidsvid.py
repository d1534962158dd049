"""TF-CLIP on one split of iLIDS-VID, right by default.

  for split in 1 2 3 4 5 6 7 8 9 10; do
    python scripts/train.py --config configs/tfclip_ilidsvid.py --config.data.split=$split \
        --config.data.root=DIR --config.model.weights=CLIP_VIT_B16_DIR \
        --workdir runs/tfclip_ilidsvid_$split
  done
  python scripts/average.py runs/tfclip_ilidsvid_*

Figures are means over the ten splits (docs/tfclip.md). Training takes windows of eight frames, four
apart, as published, but reaches the last frame of each tracklet. Tests are of whole tracklets,
camera 1 searched in camera 2; the release ranks windows, among those of other queries, and swaps
the halves of a split (`data.orientation=tfclip`). Published (ViT-B/16): rank-1 94.5, rank-5 99.1.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.tfclip.config import TFCLIPConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with the published settings for iLIDS-VID."""
    config = to_config(TFCLIPConfig())
    config.data.name = "ilidsvid"
    config.data.split = 1
    config.clips.piece, config.clips.step = 8, 4
    return config
