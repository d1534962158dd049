"""The published families at their real sizes, by shapes alone."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ccafl_jax.models.clip import CLIP, parse_config
from ccafl_jax.models.clip.naming import OPENAI
from ccafl_jax.models.named_tensors import names_of, variables_by_path
from ccafl_jax.models.reid import ReIDModel

# Parameters of OpenAI's models, as they are published.
PARAMETERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
}
VISION = {
    "RN50": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64},
    "RN101": {"image_size": 224, "layers": [3, 4, 23, 3], "width": 64},
    "RN50x4": {"image_size": 288, "layers": [4, 6, 10, 6], "width": 80},
    "ViT-B/32": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "ViT-B/16": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "ViT-L/14": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
}
JOINT = {"RN50": 1024, "RN50x4": 640, "ViT-L/14": 768}
TEXT_WIDTH = {"RN50x4": 640, "ViT-L/14": 768}
FEATURES = {
    "RN50": 2048,
    "RN101": 2048,
    "RN50x4": 2560,
    "ViT-B/32": 768 + 512,
    "ViT-B/16": 768 + 512,
    "ViT-L/14": 1024 + 768,
}
# Of the attention pool in ResNets.
IMAGE_HEADS = {
    "RN50": 32,
    "RN101": 32,
    "RN50x4": 40,
    "ViT-B/32": 12,
    "ViT-B/16": 12,
    "ViT-L/14": 16,
}
TEXT_HEADS = {
    "RN50": 8,
    "RN101": 8,
    "RN50x4": 10,
    "ViT-B/32": 8,
    "ViT-B/16": 8,
    "ViT-L/14": 12,
}


def config_of(family):
    width = TEXT_WIDTH.get(family, 512)
    return parse_config(
        {
            "embed_dim": JOINT.get(family, 512),
            "quick_gelu": True,
            "vision_cfg": VISION[family],
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": width,
                "heads": width // 64,
                "layers": 12,
            },
        }
    )


def shapes(config):
    return nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("family", PARAMETERS)
def test_parameters_are_those_published(family):
    model = shapes(config_of(family))
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert sum(math.prod(value.shape) for _, value in params) == PARAMETERS[family]
    names = [n for path in variables_by_path(model) for n in names_of(path, OPENAI)[0]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", PARAMETERS)
def test_heads_are_those_published(family):
    """No shape depends on them."""
    model = shapes(config_of(family))
    visual = model.visual
    found = (
        {b.heads for b in visual.blocks} if hasattr(visual, "blocks") else {visual.attnpool.heads}
    )
    assert found == {IMAGE_HEADS[family]} == {model.config.vision.heads}
    assert {block.heads for block in model.text.blocks} == {TEXT_HEADS[family]}


@pytest.mark.parametrize("size", [(256, 128), (384, 128)])
@pytest.mark.parametrize("family", PARAMETERS)
def test_images_of_people(family, size):
    options = {"last_stride": 1}
    if family == "ViT-B/16":
        options["patch_stride"] = 12
    config = config_of(family).for_images(size, **options)
    model = nnx.eval_shape(lambda: ReIDModel(CLIP(config, rngs=nnx.Rngs(0)).visual))
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    f, g = jax.eval_shape(
        lambda state, x: nnx.merge(graphdef, state)(x, train=False), state, images
    )
    assert f.shape == (2, FEATURES[family]) and g.shape == (2, config.embed_dim)
