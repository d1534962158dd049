"""The video model against one training step of the released one, and on its own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax import losses
from ccafl_jax.models.clip.config import ResNetConfig, ViTConfig
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.named_tensors import names_of
from ccafl_jax.models.resnet import ImageNetResNetConfig
from ccafl_jax.models.temporal import PromptSizes
from ccafl_jax.models.video import VideoConfig, VideoModel, build_video
from ccafl_jax.models.video_weights import VIDEO, load_video_tensors, video_tensors
from ccafl_jax.training.state import batch_stats_of, merge_model, split_model
from tests.golden_data import golden
from tests.models.checkpoints import close

TOY = VideoConfig(
    vision=ViTConfig(
        layers=12,
        width=32,
        heads=2,
        mlp_width=128,
        patch_size=16,
        image_size=(64, 32),
        stride=16,
    ),
    embed_dim=64,
    activation="quick_gelu",
    classes=5,
    cameras=3,
    prompt=PromptSizes(layers=1),
    diffusion_heads=4,
)
SMALL = dataclasses.replace(
    TOY,
    vision=ViTConfig(
        layers=2, width=8, heads=2, mlp_width=16, patch_size=8, image_size=(32, 16), stride=8
    ),
    embed_dim=8,
    diffusion_heads=2,
)
RESNET = dataclasses.replace(
    SMALL,
    vision=ResNetConfig(layers=(1, 1, 1, 1), width=2, image_size=(32, 16), last_stride=1),
    cameras=0,
)


def clips(data):
    """Channels last: [clips, frames, height, width, 3]."""
    return jnp.asarray(data["in/clip"].transpose(0, 1, 3, 4, 2))


def released(data):
    return {name.removeprefix("w/"): x for name, x in data.items() if name.startswith("w/")}


@pytest.fixture(scope="module")
def toy():
    data = golden("full_toy", "tfclip")
    model = nnx.eval_shape(lambda: build_video(TOY))
    passed = load_video_tensors(model, released(data))
    assert sum(map(len, passed.values())) == 4 + 4 + 3 + 1
    return model, data


@pytest.fixture(scope="module")
def step(toy):
    """Outputs, losses, gradients and statistics of a training step."""
    model, data = toy
    graph, params, stats = split_model(model)
    target, cameras = jnp.asarray(data["in/target"]), jnp.asarray(data["in/cam"])
    memory = jnp.asarray(data["in/memory"])

    @jax.jit
    def run(params):
        def loss_fn(params):
            model = merge_model(graph, params, stats)
            outputs = model(clips(data), cameras, memory, train=True)
            terms = losses.clip_losses(outputs.features, outputs.logits, target)
            main = 0.25 * terms["id"] + terms["triplet"] + terms["memory"]
            return main + terms["frame"], (outputs, main, terms["frame"], batch_stats_of(model))

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    return run(params)


def test_outputs(step):
    data = golden("full_toy", "tfclip")
    (_, (outputs, *_)), _ = step
    for ours, theirs in (("image", "cls"), ("joint", "proj"), ("time", "temp")):
        close(outputs.features[ours], data[f"out/feat_{theirs}"])
        close(outputs.logits[ours], data[f"out/score_{theirs}"])
    close(outputs.logits["frame"], data["out/score_frame"])
    close(outputs.logits["memory"], data["out/logits_v2m"])


def test_losses(step):
    data = golden("full_toy", "tfclip")
    (total, (_, main, frame, _)), _ = step
    np.testing.assert_allclose(main, data["out/loss_main"], rtol=1e-5)
    np.testing.assert_allclose(4 * frame, data["out/loss_frame"], rtol=1e-5)
    np.testing.assert_allclose(total, data["out/loss_total"], rtol=1e-5)


def official(gradients):
    """Gradients by released names, in torch's order of axes."""
    found = {}
    for path, gradient in gradients.items():
        names, layout = names_of(path, VIDEO)
        found.update(zip(names, layout.split(np.asarray(gradient)), strict=True))
    return found


def test_gradients(step):
    data = golden("full_toy", "tfclip")
    found = official(step[1])
    expected = {n.removeprefix("grad/"): x for n, x in data.items() if n.startswith("grad/")}
    assert len(expected) == 11
    for name, gradient in expected.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found[name], gradient, atol=1e-5 * scale, err_msg=name)


def test_norms_of_all_gradients(step):
    data = golden("full_toy", "tfclip")
    names = json.loads(str(data["meta"]))["grad_norm_names"]
    found = official(step[1])
    assert sorted(found) == names and len(names) == 214
    norms = np.array([np.linalg.norm(found[name]) for name in names])
    np.testing.assert_allclose(norms, data["out/grad_norms"], rtol=2e-5, atol=1e-6)


def test_running_statistics(step):
    data = golden("full_toy", "tfclip")
    (_, (*_, stats)), _ = step
    for path, value in stats.items():
        (name,), _ = names_of(path, VIDEO)
        close(value, data[f"out/bn_after/{name}"])
    assert len(stats) == 8


@pytest.mark.parametrize("feature, name", [("pooled", "before"), ("neck_released", "after")])
def test_retrieval_feature(toy, feature, name):
    model, data = toy
    cameras = jnp.asarray(data["in/cam"])
    sizes = dataclasses.replace(TOY, feature=feature)
    model = nnx.merge(*nnx.split(model))
    model.sizes = sizes
    found = jax.jit(lambda x: model.embed(x, cameras))(clips(data))
    close(found, data[f"out/test_{name}"])
    assert found.shape[1] == sizes.features


def test_feature_of_the_memory(toy):
    model, data = toy
    close(jax.jit(model.joint_means)(clips(data)), data["out/memory_feat"])


def forward(sizes, *, compute=None, key=None, **changes):
    """Outputs of random clips in training, the model, and what it was given."""
    model = build_video(sizes, compute=compute)
    rng = np.random.default_rng(0)
    given = jnp.asarray(rng.normal(size=(4, 2, 32, 16, 3)), jnp.float32)
    memory = jnp.asarray(rng.normal(size=(sizes.classes, sizes.embed_dim)), jnp.float32)
    cameras = jnp.array([0, 1, 2, 0]) if sizes.cameras else None
    arguments = {"clips": given, "cameras": cameras, "memory": memory} | changes
    return in_one_program(model, arguments, key), model, arguments


def in_one_program(model, arguments, key=None):
    graph, params, stats = split_model(model)

    @jax.jit
    def run(params, arguments, key):
        return merge_model(graph, params, stats)(**arguments, key=key)

    return run(params, arguments, key)


@pytest.mark.parametrize(
    "sizes, prompt, diffusion",
    [
        (SMALL, PromptSizes(layers=1), True),
        pytest.param(SMALL, None, True, marks=pytest.mark.ci),
        pytest.param(SMALL, PromptSizes(layers=1), False, marks=pytest.mark.ci),
        (SMALL, None, False),
        (RESNET, PromptSizes(layers=1), True),
        pytest.param(RESNET, None, False, marks=pytest.mark.ci),
    ],
)
def test_parts_can_be_left_out(sizes, prompt, diffusion):
    sizes = dataclasses.replace(sizes, prompt=prompt, diffusion=diffusion)
    outputs, model, given = forward(sizes)
    names = ["image", "joint", *["time"] * diffusion]
    assert sorted(outputs.features) == sorted(names)
    expected = [*names, *["frame"] * diffusion, "memory"]
    assert sorted(outputs.logits) == sorted(expected)
    shapes = {name: logits.shape for name, logits in outputs.logits.items()}
    assert shapes == {name: (8 if name == "frame" else 4, 5) for name in shapes}
    feature = jax.eval_shape(model.embed, given["clips"], given["cameras"])
    assert feature.shape == (4, sizes.features)
    if prompt is None:
        dot = outputs.features["joint"] @ given["memory"].T
        close(outputs.logits["memory"], dot)


def test_without_a_memory_there_are_no_logits_against_it():
    assert "memory" not in forward(dataclasses.replace(SMALL, diffusion=False), memory=None)[0][1]


def test_only_the_class_token_is_computed_where_it_is_enough():
    whole = forward(dataclasses.replace(SMALL, diffusion=False))[0]
    alone = forward(dataclasses.replace(SMALL, diffusion=False), memory=None)[0]
    for name in ("image", "joint"):
        close(alone.features[name], whole.features[name], 1e-6)


@pytest.mark.ci
def test_one_prompt_for_the_sequences_of_a_batch():
    sizes = dataclasses.replace(SMALL, prompt=PromptSizes(context="sequences"))
    outputs, model, given = forward(sizes)
    prompt = model.prompt(given["memory"], outputs.features["joint"][None])
    assert prompt.shape == (1, 5, 8)
    close(outputs.logits["memory"], outputs.features["joint"] @ (given["memory"] + prompt[0]).T)


def test_dropout_acts_in_the_prompts_alone():
    first, second = (forward(SMALL, key=jax.random.key(seed))[0] for seed in (0, 1))
    assert not np.array_equal(first.logits["memory"], second.logits["memory"])
    np.testing.assert_array_equal(first.logits["frame"], second.logits["frame"])


@pytest.mark.parametrize("sizes", [SMALL, pytest.param(RESNET, marks=pytest.mark.ci)])
def test_the_diffusion_does_not_train_the_tower(sizes):
    _, model, given = forward(sizes)
    graph, params, stats = split_model(model)

    @jax.jit
    def total(params):
        outputs = merge_model(graph, params, stats)(**given)
        return jnp.sum(outputs.features["time"] ** 2) + jnp.sum(outputs.logits["frame"] ** 2)

    gradients = jax.grad(total)(params)
    reached = {path.split("/")[0] for path, value in gradients.items() if np.any(value)}
    assert reached == {"diffusion", "necks", "classifiers"}


def test_a_resnet_stands_for_a_frame_by_the_mean_of_its_map():
    _, model, given = forward(RESNET)
    images = given["clips"].reshape(8, 32, 16, 3)
    last = model.visual.encode(images, train=False)[1]
    feature = model.embed(given["clips"])
    close(feature[:, :64], last.mean((1, 2)).reshape(4, 2, 64).mean(1))
    close(feature[:, 64:72], model.visual(images, train=False).reshape(4, 2, 8).mean(1))
    close(model.joint_means(given["clips"]), feature[:, 64:72])


def test_cameras_are_asked_for():
    with pytest.raises(ValueError, match="pass the camera of each clip, 0 to 2"):
        forward(SMALL, cameras=None)


@pytest.mark.parametrize("sizes", [SMALL, RESNET, dataclasses.replace(SMALL, prompt=None)])
def test_sizes_survive_json(sizes):
    assert VideoConfig.from_json(json.loads(json.dumps(sizes.to_json()))) == sizes


def test_tensors_there_and_back():
    model, copy = build_video(SMALL), nnx.eval_shape(lambda: build_video(SMALL))
    load_video_tensors(copy, video_tensors(model))
    for mine, other in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(copy)), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    wrong = video_tensors(model) | {"bottleneck_proj.bias": np.ones(8, np.float32)}
    with pytest.raises(ValueError, match=r"bottleneck_proj\.bias is not 0"):
        load_video_tensors(copy, wrong)
    with pytest.raises(ValueError, match=r"0 missing from the file; 1 \['gap.p'\] unknown"):
        load_video_tensors(copy, video_tensors(model) | {"gap.p": np.ones(1, np.float32)})


@pytest.mark.ci
def test_half_precision_stays_inside():
    sizes = dataclasses.replace(SMALL, prompt=PromptSizes(layers=1))
    full = forward(sizes)[0]
    found = forward(sizes, compute=Compute(dtype=jnp.bfloat16))[0]
    for group in ("features", "logits"):
        for name, value in getattr(found, group).items():
            assert value.dtype == jnp.float32
            close(value, getattr(full, group)[name], 0.05)


def test_what_cannot_be_is_refused():
    vision = ImageNetResNetConfig(layers=(1, 1, 1, 1), width=2, image_size=(32, 16))
    for changes, message in (
        ({"vision": vision}, "needs one of CLIP's"),
        ({"vision": RESNET.vision}, "no class token for an embedding of 3 cameras"),
        ({"feature": "mean"}, "feature is 'mean'"),
        ({"classes": 0}, "an identity to train on"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match="with a joint space of 8, but the sizes are for"):
        VideoModel(
            build_video(SMALL).visual,
            dataclasses.replace(SMALL, embed_dim=16),
            rngs=nnx.Rngs(0),
        )
