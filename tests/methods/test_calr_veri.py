"""CALR on vehicles: a folder in VeRi-776's layout, whose gallery holds copies of the queries."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
import pytest
from flax import nnx

from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.methods.calr.setup import prepare_run
from ccafl_jax.models.named_tensors import export
from ccafl_jax.models.resnet import ImageNetResNetConfig, ResNet
from ccafl_jax.models.resnet_weights import resnet_table
from ccafl_jax.models.tensor_files import write_tensors
from ccafl_jax.options import from_mapping
from data_prep.synthetic import layout_of, write_layout

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "calr_veri776.py"


def recipe(weights):
    spec = importlib.util.spec_from_file_location("calr_veri776", CONFIG)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    config = from_mapping(CALRConfig, loaded.get_config().to_dict())
    assert (config.data.height, config.data.width) == (224, 224)
    return dataclasses.replace(
        config,
        devices=1,
        data=dataclasses.replace(config.data, height=32, width=32),
        model=dataclasses.replace(config.model, weights=str(weights)),
        local=dataclasses.replace(config.local, epochs=1, iterations=1, classes=2, images=2),
        sampler=dataclasses.replace(config.sampler, classes=4, images=4),
        schedule=dataclasses.replace(config.schedule, epochs=2, iterations=2),
    )


@pytest.mark.ci
def test_a_run_on_vehicles(tmp_path):
    vision = ImageNetResNetConfig(layers=(1, 1, 1, 1), width=2, image_size=(32, 32))
    tensors = export(ResNet(vision, rngs=nnx.Rngs(0)), resnet_table(ibn=False))
    (tmp_path / "weights").mkdir()
    write_tensors(tmp_path / "weights" / "model.safetensors", tensors)
    root = tmp_path / "VeRi"
    people = {"seed": 3, "train_ids": 20, "test_ids": 8, "cameras": 6, "height": 32, "width": 32}
    write_layout(root, "veri776", layout_of("veri776").config(**people))
    run = prepare_run(recipe(tmp_path / "weights"), workdir=tmp_path / "run", root=str(root))
    copies = {path.rpartition("/")[2] for path in run.dataset.query.path}
    inside = np.array([path.rpartition("/")[2] in copies for path in run.dataset.gallery.path])
    assert inside.sum() == len(run.dataset.query)
    summary = run.train()
    assert summary["dataset"] == "veri776" and 0 < summary["final"]["mAP"] < 1
    features = np.asarray(run._extract(run.extract_f, "test"))
    count = len(run.dataset.query)
    nearest = np.argmax(features[:count] @ features[count:].T, axis=1)
    assert inside[nearest].all()  # the copy of the query itself, which does not count
    assert summary["final"]["rank1"] < 1
