import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.models.clip import VisionTransformer, ViTConfig, build_tower
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.reid import HeadConfig, ReIDModel, default_heads
from ccafl_jax.models.reid_weights import load_reid_tensors
from tests.golden_data import golden
from tests.models.checkpoints import close, to_nchw, to_nhwc

HEADS = {"passed over": r"classifier(_proj)?\.weight"}


def vision(image_size=(64, 32)):
    return ViTConfig(
        layers=12,
        width=32,
        heads=4,
        mlp_width=128,
        patch_size=16,
        image_size=image_size,
        stride=16,
    )


def wrapper_tensors():
    """CLIP-ReID's checkpoint under the names it is published with."""
    return {
        name.replace("visual.", "image_encoder."): value
        for name, value in golden("04_vit_s0_weights").items()
    }


def build(*, cameras=3, feature="pooled", dtype=jnp.float32, remat=False):
    compute = Compute(param_dtype=dtype, remat=remat)
    heads = HeadConfig(
        pooling="class_token", joint=True, feature=feature, cameras=cameras, camera_scale=3.0
    )

    def make():
        visual = build_tower(
            vision(), out_features=12, activation="quick_gelu", compute=compute, rngs=nnx.Rngs(0)
        )
        return ReIDModel(visual, heads)

    model = nnx.eval_shape(make)
    tensors = wrapper_tensors()
    unused = dict(HEADS)
    if not cameras:
        unused["camera embedding"] = "cv_embed"
    load_reid_tensors(model, tensors, unused=unused, stored=vision((48, 48)))
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def test_positions_are_resized(model):
    data = golden("04_vit_s0")
    close(model.visual.positional_embedding[...], data["posemb_new"])
    assert model.visual.config.grid == (int(data["h_resolution"]), int(data["w_resolution"]))


@pytest.mark.parametrize("sie", [True, False])
def test_tokens_golden(model, sie):
    data = golden("04_vit_s0")
    prefix = "sie" if sie else "nosie"
    offset = 3.0 * model.camera_embedding[...][data["cams"]] if sie else None

    @jax.jit
    def run(x):
        penultimate, last = model.visual.encode(x, class_offset=offset)
        first = model.visual.encode_class(x, class_offset=offset)
        return penultimate, last, model.visual.project(last), first

    x11, x12, tokens, first = run(to_nhwc(data["x"]))
    close(x11, data[f"{prefix}_x11"])
    close(x12, data[f"{prefix}_x12"])
    close(tokens, data[f"{prefix}_xproj"])
    close(first[0], data[f"{prefix}_x11"][:, 0])
    close(first[1], data[f"{prefix}_x12"][:, 0])


def test_wrapper_golden(model):
    data = golden("04_vit_s0")
    x, cams = to_nhwc(data["x"]), jnp.asarray(data["cams"])

    @jax.jit
    def run(x):
        pooled = model.pooled(x, cams)
        return pooled, model.neck(pooled, train=False), model.embed(x, cams)

    before, after, embedded = run(x)
    close(before, data["wrapper_eval_before"])
    close(after, data["wrapper_eval_after"])
    unit = before / np.linalg.norm(before, axis=1, keepdims=True)
    close(embedded, unit)  # retrieval before the neck, as CLIP-ReID is shipped
    close(jax.jit(model.image_features)(x), data["wrapper_get_image"])
    with pytest.raises(ValueError, match="pass the camera of each image, 0 to 2"):
        model.embed(x)


def test_wrapper_golden_without_cameras():
    data, model = golden("04_vit_s0"), build(cameras=0, feature="neck")

    @jax.jit
    def run(x):
        return model.pooled(x), model.neck(model.pooled(x), train=False), model.embed(x)

    before, after, embedded = run(to_nhwc(data["x"]))
    close(before, data["wrapper_eval_before_nosie"])
    close(after, data["wrapper_eval_after_nosie"])
    close(embedded, after / np.linalg.norm(after, axis=1, keepdims=True))


def training_step(model, *, whole):
    """CLIP-ReID's training outputs under the golden probes: values, statistics, gradients."""
    data, weights = golden("04_vit_s0"), golden("04_vit_s0_weights")
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    dtype = model.neck.scale[...].dtype
    cams = jnp.asarray(data["cams"])

    @jax.jit
    def step(params, stats, x):
        def loss(params, x):
            merged = nnx.merge(graphdef, params, stats, copy=True)
            offset = merged.heads.camera_scale * merged.camera_embedding[...][cams]
            if whole:
                tokens = merged.visual.encode(x, train=True, class_offset=offset)
                penultimate, last = (each[:, 0] for each in tokens)
            else:
                penultimate, last = merged.visual.encode_class(x, class_offset=offset)
            g = merged.visual.project(last)
            necked = merged.neck(jnp.concatenate([last, g], axis=1), train=True)
            found = {
                "f11": penultimate,
                "f12": last,
                "fproj": g,
                "score": necked[:, :32] @ weights["classifier.weight"].T.astype(dtype),
                "score_proj": necked[:, 32:] @ weights["classifier_proj.weight"].T.astype(dtype),
            }
            total = sum(jnp.sum(v * data[f"probe_{k}"]) for k, v in found.items())
            return total, (found, nnx.state(merged, nnx.BatchStat))

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (total, (found, stats)), grads = step(params, stats, to_nhwc(data["x"]).astype(dtype))
    return total, found, nnx.to_pure_dict(stats), nnx.to_pure_dict(grads[0]), grads[1]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_training_golden(remat, whole):
    data = golden("04_vit_s0")
    total, found, stats, grads, grad_x = training_step(build(remat=remat), whole=whole)
    for name, value in found.items():
        close(value, data[f"train_{name}"])
    close(total, data["train_loss"])
    neck = {k: np.asarray(v) for k, v in stats["neck"].items()}
    for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
        close(neck[ours][:32], data[f"train_after.bottleneck.{theirs}"])
        close(neck[ours][32:], data[f"train_after.bottleneck_proj.{theirs}"])
    visual = grads["visual"]
    close(to_nchw(grad_x), data["train_grad_x"])
    for value, name in (
        (grads["camera_embedding"], "cv_embed"),
        (visual["class_embedding"], "visual.class_embedding"),
        (visual["positional_embedding"], "visual.positional_embedding"),
        (visual["ln_pre"]["scale"], "visual.ln_pre.weight"),
        (visual["ln_post"]["bias"], "visual.ln_post.bias"),
        (visual["proj"], "visual.proj"),
        (
            visual["blocks"][0]["in_proj"]["bias"],
            "visual.transformer.resblocks.0.attn.in_proj_bias",
        ),
        (visual["blocks"][11]["c_fc"]["bias"], "visual.transformer.resblocks.11.mlp.c_fc.bias"),
    ):
        close(value, data[f"train_grad.{name}"])


def test_gradients_of_the_last_block_do_not_depend_on_what_is_left_out():
    with jax.enable_x64():
        parts = [
            jax.tree.leaves(training_step(build(dtype=jnp.float64), whole=whole)[3])
            for whole in (False, True)
        ]
    for lean, whole in zip(*parts, strict=True):
        np.testing.assert_allclose(lean, whole, rtol=1e-9, atol=1e-12)


def test_the_model_gives_what_the_parts_give(model):
    data = golden("04_vit_s0")
    x, cams = to_nhwc(data["x"]), jnp.asarray(data["cams"])
    neck = build(feature="neck")
    f, g = jax.jit(lambda x: neck(x, cams, train=False))(x)
    after = data["wrapper_eval_after"]
    close(f, after / np.linalg.norm(after, axis=1, keepdims=True))
    close(g, data["sie_xproj"][:, 0])


def test_overlapping_patches():
    """A stride of 12 sees the same windows as a convolution without padding does."""
    config = ViTConfig(
        layers=2, width=8, heads=2, mlp_width=16, patch_size=16, image_size=(64, 32), stride=12
    )
    assert config.grid == (5, 2)
    tower = VisionTransformer(config, out_features=4, activation="gelu", rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 32, 3)), jnp.float32)
    patches = tower.stem(images)
    kernel = tower.stem.kernel[...]
    for row in range(5):
        for column in range(2):
            window = images[:, 12 * row : 12 * row + 16, 12 * column : 12 * column + 16]
            expected = jnp.einsum("bpqi,pqiw->bw", window, kernel, precision="highest")
            close(patches[:, 2 * row + column], expected)


def test_published_grids():
    def grid(patch, stride, size):
        return ViTConfig(
            layers=2,
            width=8,
            heads=2,
            mlp_width=16,
            patch_size=patch,
            image_size=size,
            stride=stride,
        ).grid

    assert grid(16, 16, (256, 128)) == (16, 8)
    assert grid(16, 12, (256, 128)) == (21, 10)
    assert grid(16, 16, (384, 128)) == (24, 8)
    assert grid(32, 32, (256, 128)) == (8, 4)
    assert grid(14, 14, (256, 128)) == (18, 9)
    assert grid(14, 14, (224, 224)) == (16, 16)


def test_impossible_sizes_are_refused(model):
    with pytest.raises(ValueError, match="must lie between 1 and the patch size 16"):
        ViTConfig(
            layers=2, width=8, heads=2, mlp_width=16, patch_size=16, image_size=(64, 32), stride=17
        )
    with pytest.raises(ValueError, match="smaller than a patch"):
        ViTConfig(
            layers=2, width=8, heads=2, mlp_width=16, patch_size=16, image_size=(64, 8), stride=16
        )
    with pytest.raises(ValueError, match="got 32x32 images, its positions are for 64x32"):
        model.visual.encode(jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="a ViT takes 'class_token'"):
        ReIDModel(model.visual, HeadConfig(pooling="gem"))
    assert default_heads(vision()) == HeadConfig(pooling="class_token", joint=True)


def test_half_precision_stays_inside():
    data = golden("04_vit_s0")
    exact, half = build(cameras=0), build(cameras=0)
    for module in (m for _, m in nnx.iter_modules(half) if hasattr(m, "compute")):
        module.compute = Compute(dtype=jnp.bfloat16)
    x = to_nhwc(data["x"])
    a, b = jax.jit(exact.embed)(x), jax.jit(half.embed)(x)
    assert b.dtype == jnp.float32
    assert 1e-6 < np.abs(1 - np.sum(a * b, axis=1)).max() < 1e-2
