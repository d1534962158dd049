"""What TF-CLIP puts over the frames of a clip: sequence-specific prompts and a diffused memory.

The prompts move the memory of every identity towards a clip; the memory of a clip is mixed over its
frames and diffused into the tokens of each.

Source: Yu et al., "TF-CLIP: learning text-free CLIP for video-based person re-identification", and
its released code, which differ; see `PromptSizes`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.transformer import Block, activate, attend_all
from ccafl_jax.models.layers import Compute, LayerNorm, Linear, apply_block, attend

LAYOUTS = ("code", "paper")
CONTEXTS = ("tokens", "sequences")

_HEAD_WIDTH = 64
_STDDEV = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSizes:
    """Sizes of `SequencePrompt`.

    Attributes:
      layers: decoder layers.
      heads: of each attention; 0 means one for 64 channels.
      layout: `code`: identities attend to each other before they attend to the clip, as released;
        `paper`: they attend to the clip only, as the paper draws it.
      context: what identities attend to: all `tokens` of their clip, averaged over its frames (as
        released), or the feature of each of the batch's `sequences` (the supplement), which gives
        one prompt for the batch.
      dropout: share of the channels that are dropped behind each attention and in each perceptron.
    """

    layers: int = 2
    heads: int = 0
    layout: str = "code"
    context: str = "tokens"
    dropout: float = 0.1

    def __post_init__(self):
        for name, choices in (("layout", LAYOUTS), ("context", CONTEXTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {choices}")
        if self.layers < 1:
            raise ValueError(f"layers is {self.layers}; a prompt needs one decoder layer or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; choose at least 0 and below 1")


class SequencePrompt(nnx.Module):
    """Prompts that fit the memory of all identities to each clip of a batch.

    Whatever does not depend on the clip is computed once: the projection of the memory and, in the
    first layer, all that precedes the first dropout (the whole self-attention of the identities).
    """

    def __init__(
        self,
        width: int,
        sizes: PromptSizes,
        *,
        remat: bool = False,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args:
        width: of the joint space.
        sizes: of the layers.
        remat: keep only the input of each layer for the gradient and compute the rest again.
        compute: arithmetic.
        rngs: random streams of the initial parameters.

        Raises:
          ValueError: heads that do not divide the width.
        """
        heads = heads_for(width, sizes.heads)
        norm = functools.partial(LayerNorm, width, param_dtype=compute.param_dtype)
        linear = functools.partial(Linear, width, width, stddev=_STDDEV, compute=compute, rngs=rngs)
        self.context_norm, self.context_proj, self.context_out_norm = norm(), linear(), norm()
        self.memory_norm, self.memory_proj = norm(), linear()
        self.layers = nnx.List(
            [
                PromptLayer(
                    width,
                    heads=heads,
                    among=sizes.layout == "code",
                    dropout=sizes.dropout,
                    compute=compute,
                    rngs=rngs,
                )
                for _ in range(sizes.layers)
            ]
        )
        self.out_norm, self.out_proj = norm(), linear()
        self.context = sizes.context
        self.remat = remat

    def __call__(
        self, memory: jax.Array, context: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Prompts, to be added to the memory.

        Args:
          memory: float[classes, width].
          context: float[clips, tokens, width], what the identities attend to.
          key: of the dropout; None drops nothing.

        Returns:
          float32[clips, classes, width].
        """
        context = self.context_out_norm(self.context_proj(self.context_norm(context)))
        x = self.memory_proj(self.memory_norm(memory))[None]  # one row for all clips, so far

        def run(layer, x, context, key):
            return layer(x, context, key)

        run = nnx.remat(run) if self.remat else run
        for number, layer in enumerate(self.layers):
            x = run(layer, x, context, None if key is None else jax.random.fold_in(key, number))
        return numerics.at_least_float32(self.out_proj(self.out_norm(x)))


class PromptLayer(nnx.Module):
    """Self-attention of the identities, their attention to the clip, and a perceptron."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        among: bool,
        dropout: float,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args:
        width: of the joint space.
        heads: attention heads; they divide the width.
        among: whether identities attend to each other.
        dropout: share of the channels that are dropped.
        compute: arithmetic.
        rngs: random streams of the initial parameters.
        """
        options = {"compute": compute, "rngs": rngs}
        norm = functools.partial(LayerNorm, width, param_dtype=compute.param_dtype)
        self.self_norm = norm() if among else None
        self.self_attention = PromptAttention(width, heads=heads, **options) if among else None
        self.cross_norm = norm()
        self.cross_attention = PromptAttention(width, heads=heads, **options)
        self.mlp_norm = norm()
        self.mlp_in = Linear(width, 4 * width, stddev=_STDDEV, **options)
        self.mlp_out = Linear(4 * width, width, stddev=_STDDEV, **options)
        self.dropout = dropout

    def __call__(self, x: jax.Array, context: jax.Array, key: jax.Array | None) -> jax.Array:
        """Updates the identities.

        Args:
          x: float[clips, classes, width], or one row for all clips.
          context: float[clips, tokens, width], read as it is.
          key: of the dropout; None drops nothing.

        Returns:
          float[clips, classes, width].
        """
        clips = context.shape[0]
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        if self.self_attention is not None:
            normed = self.self_norm(x)
            x = x + self._drop(self.self_attention(normed, normed), keys[0], clips)
        x = x + self._drop(self.cross_attention(self.cross_norm(x), context), keys[1], clips)
        hidden = activate(self.mlp_in(self.mlp_norm(x)), kind="quick_gelu")
        return x + self._drop(self.mlp_out(self._drop(hidden, keys[2], clips)), keys[3], clips)

    def _drop(self, x: jax.Array, key: jax.Array | None, clips: int) -> jax.Array:
        """Dropout, of its own in each clip where `x` is one row for all."""
        if key is None or not self.dropout:
            return x
        kept = jax.random.bernoulli(key, 1 - self.dropout, (clips, *x.shape[1:]))
        return jnp.where(kept, x / jnp.asarray(1 - self.dropout, x.dtype), 0)


class PromptAttention(nnx.Module):
    """Attention whose projections to queries, keys and values have no bias."""

    def __init__(self, width: int, *, heads: int, compute: Compute, rngs: nnx.Rngs):
        """Args: channels, heads (they divide them), arithmetic and random streams."""

        def linear(use_bias: bool) -> Linear:
            return Linear(
                width, width, stddev=_STDDEV, use_bias=use_bias, compute=compute, rngs=rngs
            )

        self.q_proj, self.k_proj, self.v_proj = linear(False), linear(False), linear(False)
        self.out_proj = linear(True)
        self.heads = heads
        self.compute = compute

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """What rows find in their context.

        Args:
          x: float[n, rows, width], or one set of rows for all n.
          context: float[n, length, width].

        Returns:
          float[n, rows, width].
        """
        query = self.q_proj(x)
        query = jnp.broadcast_to(query, (context.shape[0], *query.shape[1:]))
        mixed = attend(
            query,
            self.k_proj(context),
            self.v_proj(context),
            heads=self.heads,
            precision=self.compute.products,
        )
        return self.out_proj(mixed)


def memory_logits(
    feature: jax.Array, memory: jax.Array, prompt: jax.Array | None = None
) -> jax.Array:
    """Video-to-memory logits: dot products, without temperature or normalisation.

    Args:
      feature: float[clips, width].
      memory: float[classes, width].
      prompt: float[clips, classes, width] that is added to it, or one for all clips (of length 1);
        None leaves the memory as it is.

    Returns:
      float32[clips, classes].
    """
    logits = numerics.einsum("bd,kd->bk", feature, memory)
    if prompt is None:
        return logits
    prompt = jnp.broadcast_to(prompt, (feature.shape[0], *prompt.shape[1:]))
    return logits + numerics.einsum("bd,bkd->bk", feature, prompt)


class TemporalDiffusion(nnx.Module):
    """A memory of each frame, mixed over the frames of the clip and diffused into their tokens.

    Nothing tells the order of the frames.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 0,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args:
        width: of the tokens.
        heads: of both attentions; 0 means one for 64 channels.
        compute: arithmetic.
        rngs: random streams; parameters begin as torch's linear layers and attentions do.

        Raises:
          ValueError: heads that do not divide the width.
        """
        self.heads = heads_for(width, heads)
        options = {"stddev": 0.0, "compute": compute, "rngs": rngs}
        self.message = Linear(width, width, **options)
        self.message_norm = LayerNorm(width, param_dtype=compute.param_dtype)
        self.in_proj = Linear(width, 3 * width, **options)
        self.out_proj = Linear(width, width, **options)
        self.block = Block(
            width,
            heads=self.heads,
            mlp_width=4 * width,
            depth=1,
            activation="quick_gelu",
            causal=False,
            compute=compute,
            rngs=rngs,
        )
        for layer in (self.message, self.block.c_fc, self.block.c_proj):
            _begin_as_torch(layer, rngs, shifts=True)
        for attention in (self, self.block):
            _begin_as_torch(attention.in_proj, rngs, fans=4 * width)
            _begin_as_torch(attention.out_proj, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Features of the frames: means over all their tokens and the memory.

        Args:
          tokens: float[clips, frames, length, width].

        Returns:
          float32[clips, frames, width].
        """
        return jnp.mean(numerics.at_least_float32(self.diffuse(tokens)), axis=2)

    def diffuse(self, tokens: jax.Array) -> jax.Array:
        """The tokens of each frame and, as the last one, its memory, after they were mixed.

        Args:
          tokens: float[clips, frames, length, width].

        Returns:
          float[clips, frames, length + 1, width].
        """
        tokens = tokens.astype(self.out_proj.compute.activations)
        memory = self.construct(tokens)[:, :, None]
        x = jnp.concatenate([tokens, memory], axis=2)
        frames = x.reshape(-1, *x.shape[2:])
        return apply_block(self.block, frames).reshape(x.shape)

    def construct(self, tokens: jax.Array) -> jax.Array:
        """The memory of each frame, mixed over the frames: float[clips, frames, width]."""
        memory = self.first_memory(tokens)
        mixed = attend_all(self.in_proj, self.out_proj, self.message_norm(memory), heads=self.heads)
        return memory + mixed

    def first_memory(self, tokens: jax.Array) -> jax.Array:
        """The memory of each frame alone: float[clips, frames, width]."""
        return self.message(jnp.mean(numerics.at_least_float32(tokens), axis=2))


def heads_for(width: int, heads: int) -> int:
    """Heads of an attention; 0 asks for one for 64 channels.

    Raises:
      ValueError: they do not divide the width.
    """
    heads = heads or max(1, width // _HEAD_WIDTH)
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide {width} channels")
    return heads


def _begin_as_torch(layer: Linear, rngs: nnx.Rngs, *, fans: int = 0, shifts: bool = False) -> None:
    """Sets an affine map to what torch begins with.

    Args:
      layer: changed in place.
      rngs: random streams.
      fans: inputs and outputs together, for Xavier's bound; 0: the bound of torch's linear layers.
      shifts: whether the biases are drawn, too; those of attentions begin at 0.
    """
    rows = layer.kernel.shape[0]
    bound = (6 / fans) ** 0.5 if fans else rows**-0.5
    parts = (layer.kernel, layer.bias) if shifts else (layer.kernel,)
    for part in parts:
        value = jax.random.uniform(rngs.params(), part.shape, part.dtype, -bound, bound)
        part.set_value(value)
