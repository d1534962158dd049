"""Text features of learned class prompts, which several methods train their encoders with."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from ccafl_jax.models.prompts import PromptTemplate, assemble
from ccafl_jax.training.sharding import host_local
from ccafl_jax.training.state import FlatDict, merge_model


def encode_prompts(
    graphdef: nnx.GraphDef,
    template: PromptTemplate,
    text_params: FlatDict,
    sentence: jax.Array,
    prompts: jax.Array,
) -> jax.Array:
    """Text features of learned prompts: float[n, 4, width] -> float[n, embed]."""
    return merge_model(graphdef, text_params, {})(assemble(sentence, template, prompts))


def make_class_texts(
    graphdef: nnx.GraphDef, template: PromptTemplate, *, batch: int = 256
) -> Callable[[FlatDict, jax.Array, jax.Array], np.ndarray]:
    """Builds `(text_params, sentence, prompts[classes, 4, width]) -> float[classes, embed]`."""

    @jax.jit
    def encode(text_params, sentence, prompts, rows):
        return encode_prompts(graphdef, template, text_params, sentence, prompts[rows])

    def class_texts(text_params: FlatDict, sentence: jax.Array, prompts: jax.Array) -> np.ndarray:
        count = prompts.shape[0]
        size = min(batch, count)
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(host_local(encode(text_params, sentence, prompts, rows)))
        return np.concatenate(parts)[:count]

    return class_texts
