"""Made-up checkpoints, and comparison with reference arrays, shared by the tests of models."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ccafl_jax.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from ccafl_jax.models.clip.naming import NAMINGS
from ccafl_jax.models.named_tensors import names_of, split_shapes, variables_by_path


def small_config(*, image_size=(64, 32), last_stride=1, activation="quick_gelu"):
    """A model of a few thousand parameters."""
    return CLIPConfig(
        embed_dim=6,
        vision=ResNetConfig(
            layers=(1, 1, 1, 1), width=4, image_size=image_size, last_stride=last_stride
        ),
        text=TextConfig(vocab=20, context=13, width=8, heads=2, layers=2),
        activation=activation,
    )


def small_vit_config(*, image_size=(32, 32), stride=16, activation="quick_gelu", layers=2):
    """A vision transformer of a few thousand parameters."""
    return CLIPConfig(
        embed_dim=6,
        vision=ViTConfig(
            layers=layers,
            width=8,
            heads=2,
            mlp_width=16,
            patch_size=16,
            image_size=image_size,
            stride=stride,
        ),
        text=TextConfig(vocab=20, context=13, width=8, heads=2, layers=2, mlp_width=16),
        activation=activation,
    )


def tensor_shapes(config, naming="openai"):
    """Shapes of all tensors of a model, by their names in a file."""
    model = nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0)))
    shapes = {}
    for path, variable in variables_by_path(model).items():
        names, layout = names_of(path, NAMINGS[naming])
        shapes.update(zip(names, split_shapes(variable.shape, layout), strict=True))
    return shapes


def zero_tensors(config):
    """A checkpoint of zeros."""
    return {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}


def random_tensors(config, seed=0, naming="openai"):
    """A checkpoint of random numbers; running variances are positive."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in tensor_shapes(config, naming).items()
    }


def to_nhwc(x):
    """Channels last, for jax."""
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


def to_nchw(x):
    """Channels first, for comparison."""
    return np.transpose(np.asarray(x), (0, 3, 1, 2))


def close(found, expected, tolerance=1e-5):
    """Equal to `tolerance` of the largest entry, or of 1 where all are smaller."""
    expected = np.asarray(expected)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
