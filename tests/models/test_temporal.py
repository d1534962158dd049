"""Prompts and memory diffusion of TF-CLIP against reference values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax import losses
from ccafl_jax.models.clip.transformer import activate
from ccafl_jax.models.layers import Compute, LayerNorm, resize_positions
from ccafl_jax.models.named_tensors import fill
from ccafl_jax.models.temporal import (
    PromptAttention,
    PromptLayer,
    PromptSizes,
    SequencePrompt,
    TemporalDiffusion,
    memory_logits,
)
from ccafl_jax.models.video_weights import DIFFUSION, PROMPT, PROMPT_LAYER
from tests.golden_data import golden
from tests.models.checkpoints import close

OPTIONS = {"compute": Compute(), "rngs": nnx.Rngs(0)}
DEAD = {"parameters that nothing reads": r"alpha|norm\.(weight|bias)"}


def filled(model, data, table, prefix="w/", **options):
    """The model with the weights of a reference file."""
    tensors = {name.removeprefix(prefix): x for name, x in data.items() if name.startswith(prefix)}
    fill(model, tensors, table=table, unused=options.get("unused", {}))
    return model


def test_activation_and_norm():
    data = golden("quickgelu_layernorm", "tfclip")
    close(activate(jnp.asarray(data["in/x"]), kind="quick_gelu"), data["out/quickgelu"])
    norm = LayerNorm(16)
    norm.scale[...], norm.bias[...] = data["w/weight"], data["w/bias"]
    close(norm(jnp.asarray(data["in/x"])), data["out/layernorm"])


@pytest.mark.parametrize("grid", [(16, 8), (21, 10)])
def test_positions_are_resized(grid):
    data = golden("pos_embed_resize", "tfclip")
    found = resize_positions(data["in/pos"], old_grid=(14, 14), new_grid=grid)
    close(found, data[f"out/to_{grid[0]}x{grid[1]}"])


def test_attention_of_the_prompts():
    data = golden("ssp_attention", "tfclip")
    attention = PromptAttention(64, heads=4, **OPTIONS)
    table = [row for row in PROMPT_LAYER if row.path.startswith("cross_attention/")]
    table = [
        row._replace(
            path=row.path.removeprefix("cross_attention/"),
            names=tuple(name.removeprefix("cross_attn.") for name in row.names),
        )
        for row in table
    ]
    filled(attention, data, table)
    close(attention(jnp.asarray(data["in/q"]), jnp.asarray(data["in/kv"])), data["out/y"])


def test_layer_of_the_prompts():
    data = golden("ssp_layer", "tfclip")
    layer = PromptLayer(64, heads=4, among=True, dropout=0.1, **OPTIONS)
    filled(layer, data, PROMPT_LAYER)
    found = layer(jnp.asarray(data["in/x"]), jnp.asarray(data["in/visual"]), None)
    close(found, data["out/y"])


def prompt_model(**changes):
    data = golden("ssp_d64_l2", "tfclip")
    prompt = SequencePrompt(64, PromptSizes(), **{**OPTIONS, **changes})
    return filled(prompt, data, PROMPT, unused=DEAD), data


def test_prompts():
    prompt, data = prompt_model()
    memory, visual = jnp.asarray(data["in/memory"]), jnp.asarray(data["in/visual"])
    found = jax.jit(lambda m, v: prompt(m, v))(memory, visual)
    close(found, data["out/prompt"])
    close(memory + found, data["out/updated"])


@pytest.mark.parametrize("remat", [False, True])
def test_video_to_memory(remat):
    prompt, _ = prompt_model(remat=remat)
    data = golden("v2m", "tfclip")
    graph, params = nnx.split(prompt)
    memory, target = jnp.asarray(data["in/memory"]), jnp.asarray(data["in/target"])

    @jax.jit
    def run(params, cls, visual):
        def loss_fn(params, cls, visual):
            found = nnx.merge(graph, params)(memory, visual)
            logits = memory_logits(cls, memory, found)
            return losses.smoothed_cross_entropy(logits, target), logits

        return jax.value_and_grad(loss_fn, argnums=(0, 1, 2), has_aux=True)(params, cls, visual)

    given = jnp.asarray(data["in/cls"]), jnp.asarray(data["in/visual"])
    (loss, logits), (of_params, of_cls, of_visual) = run(params, *given)
    close(logits, data["out/logits"])
    np.testing.assert_allclose(loss, data["out/loss"], rtol=1e-5)
    close(of_cls, data["grad/cls"])
    close(of_visual, data["grad/visual"])
    close(of_params["memory_proj"]["kernel"][...].T, data["grad/w/text_proj.1.weight"])
    close(of_params["out_proj"]["kernel"][...].T, data["grad/w/out_proj.1.weight"])


def test_what_clips_share_is_computed_once():
    """Rows repeated for every clip give the same prompts as one row for all."""
    prompt, data = prompt_model()
    memory, visual = jnp.asarray(data["in/memory"]), jnp.asarray(data["in/visual"])
    layer = prompt.layers[0]
    once = memory[None]
    close(layer(once, visual, None), layer(jnp.repeat(once, 3, axis=0), visual, None), 1e-6)
    shapes = [
        equation.outvars[0].aval.shape
        for equation in jax.make_jaxpr(lambda v: prompt(memory, v))(visual).eqns
    ]
    assert (1, 7, 64) in shapes


def test_dropout_differs_between_clips_and_has_the_right_mean():
    layer = PromptLayer(64, heads=4, among=True, dropout=0.25, **OPTIONS)
    ones = jnp.ones((1, 50, 64))
    found = layer._drop(ones, jax.random.key(0), 8)
    assert found.shape == (8, 50, 64)
    assert sorted(np.unique(found)) == pytest.approx([0, 4 / 3])
    assert np.mean(found) == pytest.approx(1, abs=0.01)
    assert not np.array_equal(found[0], found[1])
    prompt, data = prompt_model()
    memory, visual = jnp.asarray(data["in/memory"]), jnp.asarray(data["in/visual"])
    first, again, other = (prompt(memory, visual, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_layout_of_the_paper_has_no_attention_among_identities():
    sizes = PromptSizes(layout="paper", dropout=0.0)
    prompt = SequencePrompt(64, sizes, **OPTIONS)
    assert prompt.layers[0].self_attention is None
    rng = np.random.default_rng(0)
    memory, visual = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 64), (2, 9, 64)))
    whole = prompt(memory, visual)
    close(prompt(memory[:3], visual), whole[:, :3], 1e-6)  # each identity by itself
    code = SequencePrompt(64, PromptSizes(dropout=0.0), **OPTIONS)
    assert np.abs(code(memory[:3], visual) - code(memory, visual)[:, :3]).max() > 1e-7


def count(model):
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_sizes_are_the_published_ones():
    def prompt(layout):
        sizes = PromptSizes(layout=layout)
        return SequencePrompt(512, sizes, compute=Compute(), rngs=nnx.Rngs(0))

    released, drawn = (
        nnx.eval_shape(functools.partial(prompt, name)) for name in ("code", "paper")
    )
    assert count(released.layers) == 8_401_920
    assert count(released) == 9_195_520 - 3 * 512  # without the three vectors that nothing reads
    assert count(released) - count(drawn) == 2 * (4 * 512**2 + 3 * 512)
    diffusion = nnx.eval_shape(lambda: TemporalDiffusion(768, compute=Compute(), rngs=nnx.Rngs(0)))
    assert count(diffusion) == 10_042_368


def test_memory_diffusion():
    data = golden("tmd_block", "tfclip")
    diffusion = filled(TemporalDiffusion(64, heads=4, **OPTIONS), data, DIFFUSION)
    # Published: [tokens, clips * frames, channels].
    tokens = jnp.asarray(data["in/x"]).transpose(1, 0, 2).reshape(2, 4, 9, 64)
    close(diffusion.first_memory(tokens), data["out/init_memory_BTD"])
    close(diffusion.construct(tokens), data["out/temporal_memory_TBD"].transpose(1, 0, 2))
    mixed = jax.jit(diffusion.diffuse)(tokens)
    close(mixed.reshape(8, 10, 64), data["out/y"].transpose(1, 0, 2))
    frames = diffusion(tokens)
    close(frames.reshape(8, 64), data["out/frame_feat"])
    close(frames.mean(1), data["out/clip_feat"])


def test_the_order_of_frames_carries_nothing():
    diffusion = TemporalDiffusion(64, heads=4, **OPTIONS)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 9, 64)), jnp.float32)
    order = np.array([2, 0, 3, 1])
    close(diffusion(tokens[:, order]), diffusion(tokens)[:, order], 1e-6)


def test_diffusion_begins_as_torch_does():
    diffusion = TemporalDiffusion(64, **OPTIONS)
    for layer, bound, shifted in (
        (diffusion.message, 1 / 8, True),
        (diffusion.in_proj, (6 / 256) ** 0.5, False),
        (diffusion.out_proj, 1 / 8, False),
        (diffusion.block.in_proj, (6 / 256) ** 0.5, False),
        (diffusion.block.c_proj, 1 / 16, True),
    ):
        largest = float(jnp.abs(layer.kernel[...]).max())
        assert 0.98 * bound < largest <= bound
        assert bool(jnp.any(layer.bias[...] != 0)) == shifted


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="3 attention heads do not divide 64"):
        TemporalDiffusion(64, heads=3, **OPTIONS)
    for values, message in (
        ({"layout": "figure"}, "layout is 'figure'"),
        ({"context": "frames"}, "context is 'frames'"),
        ({"layers": 0}, "one decoder layer"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            PromptSizes(**values)


def test_rematerialisation_keeps_little_for_the_gradient():
    """Kept bytes do not depend on a backend; the gradients are compared above."""

    def kept(remat):
        sizes = PromptSizes(layers=2)
        prompt = SequencePrompt(64, sizes, remat=remat, compute=Compute(), rngs=nnx.Rngs(0))
        graph, params = nnx.split(prompt)

        def pullback(params, memory, context, key):
            return jax.vjp(lambda p: nnx.merge(graph, p)(memory, context, key), params)[1]

        given = jnp.zeros((50, 64)), jnp.zeros((4, 9, 64)), jax.random.key(0)
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(pullback, params, *given)))

    assert kept(True) < 0.25 * kept(False)
