"""Models published with CCLNet, under their own names."""

import numpy as np
import pytest
from flax import nnx

from ccafl_jax.deploy.convert import convert
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.forward import abstract_model
from ccafl_jax.deploy.torch_checkpoint import Checkpoint
from ccafl_jax.training.state import merge_model
from tests.golden_data import golden
from tests.models.checkpoints import to_nhwc

SIZE = (64, 32)


def published():
    """The small network of the vectors as the released training code saves it."""
    data = golden("stage2_step_small", "cclnet")
    used = {key.removeprefix("w0/"): x for key, x in data.items() if key.startswith("w0/")}
    tensors = dict(used)
    for name, value in used.items():  # three whole towers, of each of which a part is used
        for part in ("visible_module.visible.", "thermal_module.thermal."):
            if name.startswith("base_resnet.base."):
                tensors[name.replace("base_resnet.base.", part)] = np.zeros_like(value)
        if name.startswith("visible_module.visible."):
            trunk = name.replace("visible_module.visible.", "base_resnet.base.")
            tensors[trunk] = np.zeros_like(value)
    tensors["prompt_learner.cls_ctx_rgb"] = np.zeros((395, 4, 8), np.float32)
    tensors["prompt_learner.token_prefix_ir"] = np.zeros((1, 6, 8), np.float32)
    tensors["text_encoder.ln_final.weight"] = np.zeros(8, np.float32)
    tensors["bottleneck.num_batches_tracked"] = np.zeros((), np.int64)
    return {f"module.{name}": value for name, value in tensors.items()}


def test_features_are_those_of_the_release():
    converted = convert(Checkpoint(published(), "best.pth"), image_size=SIZE)
    assert converted.kind == "CCLNet"
    assert converted.bundle.model.dual_stream and converted.bundle.model.vision.last_stride == 1
    assert converted.bundle.preprocess.mean == (0.485, 0.456, 0.406)
    assert converted.bundle.preprocess.filter == "lanczos"
    passed = {what: len(names) for what, names in converted.passed_over.items()}
    assert passed["prompts"] == 2 and passed["text tower"] == 1
    assert passed["stem of the trunk"] == 15
    data, bundle = golden("stage2_step_small", "cclnet"), converted.bundle
    model = merged(bundle)
    for short, kind in (("rgb", 0), ("ir", 1)):
        x = to_nhwc(np.broadcast_to(data[f"x_{short}"], (8, 3, *SIZE)))
        found = model.embed(x, np.full(8, kind))
        np.testing.assert_allclose(found, data[f"eval_feat_{short}"], atol=2e-5)


def merged(bundle):
    """The model, for images that are normalised already, as those of the vectors are."""
    graphdef = nnx.split(abstract_model(bundle.model), nnx.Param, nnx.BatchStat)[0]
    return merge_model(graphdef, bundle.params, bundle.batch_stats)


def test_an_embedder_asks_for_the_modality():
    bundle = convert(Checkpoint(published(), "best.pth"), image_size=SIZE).bundle
    images = np.random.default_rng(0).integers(0, 255, (2, *SIZE, 3)).astype(np.uint8)
    embedder = Embedder(bundle, batch=2, devices=1)
    visible, infrared = (embedder.embed(images, kind) for kind in (0, 1))
    assert np.abs(visible - infrared).max() > 1e-3
    with pytest.raises(ValueError, match="two streams; pass cameras, 0 to 1"):
        embedder.embed(images)


def test_options_of_other_models_are_refused():
    with pytest.raises(ValueError, match=r"ResNet with two stems; drop --heads"):
        convert(Checkpoint(published(), "file"), image_size=SIZE, heads=4)
    with pytest.raises(ValueError, match=r"no stride gives them at 256x128"):
        convert(Checkpoint(published(), "file"))
