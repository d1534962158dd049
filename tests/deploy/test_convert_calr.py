"""Models published with CALR, under their own names."""

import numpy as np
import pytest
from flax import nnx

from ccafl_jax.deploy.convert import convert
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.torch_checkpoint import Checkpoint
from ccafl_jax.models.named_tensors import export
from ccafl_jax.models.reid import HeadConfig, ReIDModel
from ccafl_jax.models.resnet import ImageNetResNetConfig, ResNet
from ccafl_jax.models.resnet_weights import SEQUENTIAL, resnet_table

SIZE = (32, 16)


def small(*, ibn=True, pooling="gem"):
    """A model with random statistics."""
    vision = ImageNetResNetConfig(layers=(1, 2, 1, 1), width=2, image_size=SIZE, ibn=ibn)
    model = ReIDModel(ResNet(vision, rngs=nnx.Rngs(1)), HeadConfig(pooling=pooling))
    rng = np.random.default_rng(0)
    model.neck.mean[...] = rng.normal(size=64)
    model.neck.var[...] = 1 + rng.random(64)
    model.neck.scale[...] = 1 + rng.random(64)
    return model


def published(model):
    """The state dict as the released training code saves it."""
    tower = export(model.visual, resnet_table(ibn=model.visual.config.ibn, parts=SEQUENTIAL))
    tensors = {f"module.{name}": value for name, value in tower.items()}
    if model.heads.pooling == "gem":
        tensors["module.gap.p"] = np.asarray(model.gem.p[...]).reshape(1)
    neck = {"weight": model.neck.scale, "running_mean": model.neck.mean,
            "running_var": model.neck.var}  # fmt: skip
    tensors |= {f"module.feat_bn.{name}": np.asarray(x[...]) for name, x in neck.items()}
    tensors["module.feat_bn.bias"] = np.zeros(64, np.float32)
    tensors["module.base.1.num_batches_tracked"] = np.zeros((), np.int64)
    tensors["module.domain_classifier.d_fc1.weight"] = np.ones((100, 64), np.float32)
    tensors["module.domain_classifier.d_bn1.running_mean"] = np.ones(100, np.float32)
    return tensors


@pytest.mark.parametrize(("ibn", "pooling"), [(True, "gem"), (False, "mean")])
def test_features_are_those_of_the_model(ibn, pooling):
    model = small(ibn=ibn, pooling=pooling)
    converted = convert(Checkpoint(published(model), "model_best.pth.tar"), image_size=SIZE)
    assert converted.kind == "CALR"
    assert converted.bundle.model.vision == model.visual.config
    assert converted.bundle.model.heads == model.heads
    assert {what: len(found) for what, found in converted.passed_over.items()} == {
        "batch counters": 1,
        "shifts of the neck": 1,
        "classifier of cameras": 2,
    }
    images = np.random.default_rng(1).integers(0, 255, (3, *SIZE, 3)).astype(np.uint8)
    found = Embedder(converted.bundle, batch=4, devices=1).embed(images)
    mean, std = converted.bundle.preprocess.mean, converted.bundle.preprocess.std
    expected = model.embed(((images / 255 - np.array(mean)) / np.array(std)).astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_may_be_missing_or_unknown():
    tensors = published(small())
    missing = {k: x for k, x in tensors.items() if k != "module.base.5.1.bn1.BN.weight"}
    with pytest.raises(ValueError, match=r"1 \['base.5.1.bn1.BN.weight'\] missing"):
        convert(Checkpoint(missing, "file"), image_size=SIZE)
    extra = {**tensors, "module.classifier.weight": np.zeros((3, 64), np.float32)}
    with pytest.raises(ValueError, match=r"1 \['classifier.weight'\] unknown"):
        convert(Checkpoint(extra, "file"), image_size=SIZE)
    shifted = {**tensors, "module.feat_bn.bias": np.ones(64, np.float32)}
    with pytest.raises(ValueError, match=r"feat_bn.bias is not 0"):
        convert(Checkpoint(shifted, "file"), image_size=SIZE)
    with pytest.raises(ValueError, match=r"ResNet of ImageNet; drop --heads"):
        convert(Checkpoint(tensors, "file"), image_size=SIZE, heads=4)
