"""Models published with TF-CLIP, under their own names, and how they are scored."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.data.clips import dense_clips
from ccafl_jax.data.decoded import decode_rows
from ccafl_jax.data.opening import open_collection
from ccafl_jax.data.records import tracklets
from ccafl_jax.deploy.clips import frames_of
from ccafl_jax.deploy.convert import convert, write_converted
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.evaluate import score
from ccafl_jax.deploy.features import extract
from ccafl_jax.deploy.run_folder import read_run
from ccafl_jax.deploy.torch_checkpoint import Checkpoint
from ccafl_jax.models.clip.config import ViTConfig
from ccafl_jax.models.named_tensors import names_of, variables_by_path
from ccafl_jax.models.temporal import PromptSizes
from ccafl_jax.models.video import VideoConfig, build_video
from ccafl_jax.models.video_weights import DEAD, VIDEO, video_tensors
from data_prep.synthetic import write_layout
from data_prep.synthetic.layouts.mars import MarsConfig
from tests.golden_data import golden
from tests.methods.small_run import small_dataset
from tests.methods.small_tfclip import small_tfclip

SIZES = VideoConfig(
    vision=ViTConfig(
        layers=2,
        width=64,
        heads=1,
        mlp_width=32,
        patch_size=16,
        image_size=(64, 32),
        stride=16,
    ),
    embed_dim=64,
    activation="quick_gelu",
    classes=5,
    cameras=6,
    prompt=PromptSizes(layers=2),
)
SIZE = {"image_size": (64, 32), "stride": 16}


def released(sizes=SIZES):
    """A model, and its state dict as the released code saves it."""
    model = build_video(sizes)
    tensors = video_tensors(model)
    vectors = {name: np.ones(64, np.float32) for name in ("alpha", "norm.weight", "norm.bias")}
    tensors |= {f"SSP.{name}": x for name, x in vectors.items()}
    for neck in ("bottleneck", "bottleneck_proj", "bottleneck_proj_temp", "bottleneck_proj_temp2"):
        tensors[f"{neck}.bias"] = np.zeros(64, np.float32)
        tensors[f"{neck}.num_batches_tracked"] = np.asarray(3)
    tensors["classifier_proj_temp2.weight"] = np.ones((5, 64), np.float32)
    return model, tensors


def test_official_names_are_those_of_the_reference():
    """Both ways: nothing of a released module is unnamed here, and nothing here is unknown."""
    official = {name[2:] for name in golden("full_toy", "tfclip") if name.startswith("w/")}
    official = {re.sub(r"resblocks\.\d+\.(?=.*)", "resblocks.0.", name) for name in official}
    sizes = dataclasses.replace(SIZES, prompt=PromptSizes(layers=1))
    mine = set(released(sizes)[1])
    mine = {re.sub(r"resblocks\.\d+\.(?=.*)", "resblocks.0.", name) for name in mine}
    assert mine == official


def test_every_parameter_has_one_name():
    paths = variables_by_path(nnx.eval_shape(lambda: build_video(SIZES)))
    names = [name for path in paths for name in names_of(path, VIDEO)[0]]
    assert len(set(names)) == len(names) == len(paths)
    assert not any(re.fullmatch(pattern, name) for pattern in DEAD.values() for name in names)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_sizes_are_told_from_the_tensors(wrapper):
    model, tensors = released()
    named = {wrapper + name: value for name, value in tensors.items()}
    converted = convert(Checkpoint(named, "MARS_best.pth"), **SIZE)
    assert converted.kind == "TF-CLIP" and converted.bundle.model == SIZES
    assert {what: len(found) for what, found in converted.passed_over.items()} == {
        "batch counters": 4,
        "shifts of the necks": 4,
        "parameters of the prompts that nothing reads": 3,
        "a classifier that nothing reads": 1,
    }
    assert converted.bundle.preprocess.filter == "bilinear"
    assert converted.bundle.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    for path, variable in variables_by_path(model).items():
        found = {**converted.bundle.params, **converted.bundle.batch_stats}[path]
        np.testing.assert_array_equal(found, variable[...], err_msg=path)


def test_options_and_variants():
    paper = dataclasses.replace(SIZES, prompt=PromptSizes(layout="paper"), cameras=0)
    tensors = released(paper)[1]
    converted = convert(Checkpoint(tensors, "file"), feature="neck_released", **SIZE)
    assert converted.bundle.model == dataclasses.replace(paper, feature="neck_released")
    with pytest.raises(ValueError, match="no camera embedding"):
        convert(Checkpoint(tensors, "file"), camera_scale=2.0, **SIZE)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        convert(Checkpoint(tensors, "file"), activation="relu", **SIZE)


def test_nothing_may_be_missing_or_unknown():
    tensors = released()[1]
    missing = {k: x for k, x in tensors.items() if k != "TMD.resblocks.0.message_fc.bias"}
    with pytest.raises(ValueError, match=r"1 \['TMD.resblocks.0.message_fc.bias'\] missing"):
        convert(Checkpoint(missing, "file"), **SIZE)
    extra = {**tensors, "classifier.weight": np.zeros((5, 64), np.float32)}
    with pytest.raises(ValueError, match=r"1 \['classifier.weight'\] unknown"):
        convert(Checkpoint(extra, "file"), **SIZE)
    shifted = {**tensors, "bottleneck_proj_temp.bias": np.ones(64, np.float32)}
    with pytest.raises(ValueError, match=r"bottleneck_proj_temp.bias is not 0"):
        convert(Checkpoint(shifted, "file"), **SIZE)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A converted model in a run folder, and walks to score it on."""
    folder = tmp_path_factory.mktemp("tfclip")
    converted = convert(Checkpoint(released()[1], "MARS_best.pth"), **SIZE)
    write_converted(folder / "run", converted.bundle)
    layout = MarsConfig(train_ids=1, test_ids=3, frames=6, height=72, width=40)
    write_layout(folder / "data", "mars", layout)
    return read_run(folder / "run"), open_collection("mars", folder / "data"), folder


def test_dense_features_are_means_over_all_clips(scored):
    bundle, collection, _ = scored
    found = extract(bundle, collection, frames=4, batch=12)
    assert found.meta["pooling"] == "dense clips of 4 frames" and found.meta["unit"] == "tracklet"
    query = collection.parts["query"]
    table = tracklets(query)
    number = int(np.argmax(table.count))
    clips = dense_clips(table, frames=4)
    rows = clips.rows[clips.tracklet == number]
    pixels = decode_rows(query, rows.ravel(), bundle.preprocess.pixels).reshape(
        len(rows), 4, 64, 32, 3
    )
    mean, std = (np.array(x, np.float32) for x in (bundle.preprocess.mean, bundle.preprocess.std))
    camera = collection.camera_codes[table.camid[number]] - 1
    model = released()[0]
    given = jnp.asarray((pixels / np.float32(255) - mean) / std)
    values = model.embed(given, np.repeat(camera, len(rows)))
    expected = np.mean(values, axis=0)
    np.testing.assert_allclose(
        found.features[number], expected / np.linalg.norm(expected), atol=2e-5
    )


def test_both_kinds_of_clips_are_scored(scored):
    bundle, collection, folder = scored
    dense, spread = (
        extract(bundle, collection, frames=4, clips=kind, cache=folder / "kept")
        for kind in ("dense", "spread")
    )
    assert spread.meta["pooling"] == "spread clips of 4 frames"
    assert dense.meta["key"] != spread.meta["key"]
    assert not np.allclose(dense.features, spread.features)
    figures = score(dense).figures
    assert 0 < figures["mAP"] <= 1 and figures["protocol"] == "mars"
    again = extract(bundle, collection, frames=4, clips="dense", cache=folder / "kept")
    np.testing.assert_array_equal(again.features, dense.features)


def test_what_does_not_go_together_is_refused(scored):
    bundle, collection, _ = scored
    with pytest.raises(ValueError, match="single images are asked for"):
        Embedder(bundle)
    with pytest.raises(ValueError, match="leave flip out"):
        extract(bundle, collection, flip=True)
    with pytest.raises(ValueError, match="a clip has 1 or more"):
        extract(bundle, collection, frames=0)
    parts = {**collection.parts, "query": small_dataset().query}
    with pytest.raises(ValueError, match=r"holds single images \(query\)"):
        extract(bundle, dataclasses.replace(collection, parts=parts))


@pytest.mark.ci
def test_a_trained_run_is_scored_as_it_was_measured(tmp_path):
    """The folder of a run says how long its clips were."""
    run = small_tfclip(tmp_path)
    summary = run.train()
    bundle = read_run(tmp_path)
    assert bundle.model == run.model_config and bundle.metrics["mAP"] == summary["final"]["mAP"]
    assert frames_of(bundle) == 2
