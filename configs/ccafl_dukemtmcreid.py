"""CCAFL on DukeMTMC-reID, right by default.

  python scripts/train.py --config configs/ccafl_dukemtmcreid.py \
      --config.data.root=DIR --config.model.weights=CLIP_RN50_DIR --workdir runs/dukemtmcreid

The published settings for DukeMTMC-reID with the accidents of the released code put right, as in
configs/ccafl_market1501.py: fewer candidate pairs, a smaller angular margin, and text and ICAL from
epoch 40. The figures published for DukeMTMC-reID belong to configs/ccafl_dukemtmcreid_release.py;
this recipe has no published figure.

The training set makes 2196 (camera, identity) classes. The authors of the data set have withdrawn
it; who holds a copy can read it here.
"""

from ml_collections import ConfigDict

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import to_config


def get_config() -> ConfigDict:
    """All options, with the published settings for DukeMTMC-reID."""
    config = to_config(CCAFLConfig())
    config.data.name = "dukemtmcreid"
    config.sampler.classes, config.sampler.images = 16, 8
    config.association.rate = 1.5
    config.icdl.w = 0.6
    config.schedule.text_start = 40.0
    config.schedule.ical_start, config.schedule.ical_end = 40.0, 60.0
    config.ical.epsilon, config.ical.margin, config.ical.inflation = 0.8, 0.3, 0.2
    return config
