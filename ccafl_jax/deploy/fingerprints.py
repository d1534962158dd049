"""What tells features of one model from those of another."""

from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.scoring.feature_set import fingerprint
from ccafl_jax.training.description import model_digest

VERSION = 1
"""Of the features: raised when the same model and images give others than before."""


def model_fingerprint(bundle: ModelBundle, *, flip: bool = False) -> str:
    """Of what makes a feature from an image, save for rounding; 64 hexadecimal digits.

    Args:
      bundle: the model.
      flip: whether features of images and of their mirror images are averaged.
    """
    return fingerprint(
        version=VERSION,
        arrays=model_digest(bundle.params, bundle.batch_stats),
        model=bundle.model.to_json(),
        cameras=list(bundle.camera_codes),
        preprocess=bundle.preprocess.to_json(),
        flip=flip,
    )
