"""Learnable class prompts: "A photo of a [X]1 [X]2 [X]3 [X]4 person.".

Source: Li et al., "CLIP-ReID: exploiting vision-language model for image re-identification
without concrete text labels".
"""

import dataclasses

import jax
import jax.numpy as jnp

TEXT = "A photo of a X X X X person."
SLOTS = 4
PREFIX_TOKENS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A tokenised sentence in which learned vectors replace some tokens.

    Attributes:
      ids: token ids up to and including the end-of-text token.
      learned: positions of the learned vectors.
    """

    ids: tuple[int, ...]
    learned: tuple[int, ...]

    def __post_init__(self):
        if not all(0 < position < self.eot for position in self.learned):
            raise ValueError(
                f"learned positions {self.learned} must lie between the first token and the "
                f"end-of-text token at {self.eot}"
            )

    @property
    def eot(self) -> int:
        """Position of the end-of-text token: the last one."""
        return len(self.ids) - 1


def prompt_template(
    tokenizer, *, text: str = TEXT, prefix_tokens: int = PREFIX_TOKENS
) -> PromptTemplate:
    """The template sentence in the tokens of a model.

    Args:
      tokenizer: with `encode(texts, context_length) -> (ids, eot)`.
      text: the sentence, with four X.
      prefix_tokens: tokens kept before the learned vectors. 4 replaces the four X. The published
        code keeps 5 (Market-1501, MSMT17) or 6 (DukeMTMC-reID), which shifts the vectors over
        "person" and the full stop.

    Raises:
      ValueError: if the tokenizer does not give four single tokens for the four X.
    """
    ids, eot = tokenizer.encode([text])
    return template_from_ids(
        ids[0, : eot[0] + 1], slot=_slot_token(tokenizer), text=text, prefix_tokens=prefix_tokens
    )


def template_from_ids(
    ids, *, slot: int, text: str = TEXT, prefix_tokens: int = PREFIX_TOKENS
) -> PromptTemplate:
    """As `prompt_template`, from the token ids up to end-of-text and the id of "X"."""
    ids = tuple(int(i) for i in ids)
    found = [position for position, token in enumerate(ids) if token == slot]
    if len(found) != SLOTS or found[-1] - found[0] != SLOTS - 1:
        raise ValueError(
            f"{text!r} must hold four consecutive tokens for its X; found them at {found}; "
            "use the tokenizer files of the model"
        )
    start = found[0] + prefix_tokens - PREFIX_TOKENS
    return PromptTemplate(ids=ids, learned=tuple(range(start, start + SLOTS)))


def init_prompts(
    key: jax.Array, num_classes: int, *, width: int, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Initial learned vectors, N(0, 0.02^2): float[num_classes, 4, width]."""
    noise = jax.random.normal(key, (num_classes, SLOTS, width), jnp.dtype(dtype))
    return noise * jnp.asarray(0.02, dtype)


def template_embeddings(token_embedding: jax.Array, template: PromptTemplate) -> jax.Array:
    """Frozen embeddings of the template.

    Args:
      token_embedding: float[vocab, width], the table of the text tower.
      template: the sentence.

    Returns:
      float[length, width].
    """
    return token_embedding[jnp.asarray(template.ids)]


def assemble(embeddings: jax.Array, template: PromptTemplate, learned: jax.Array) -> jax.Array:
    """Puts learned vectors into the template.

    Args:
      embeddings: float[length, width], from `template_embeddings`.
      template: the sentence.
      learned: float[n, 4, width].

    Returns:
      float[n, length, width], token embeddings for the text tower.
    """
    n, slots, width = learned.shape
    if slots != len(template.learned):
        raise ValueError(f"{slots} learned vectors for {len(template.learned)} positions")
    start, stop = template.learned[0], template.learned[-1] + 1
    before = jnp.broadcast_to(embeddings[:start], (n, start, width))
    after = jnp.broadcast_to(embeddings[stop:], (n, embeddings.shape[0] - stop, width))
    return jnp.concatenate([before, learned, after], axis=1)


def _slot_token(tokenizer) -> int:
    ids, eot = tokenizer.encode(["X"])
    if eot[0] != 2:
        raise ValueError(
            f"the tokenizer splits 'X' into {eot[0] - 1} tokens; use the tokenizer of the model"
        )
    return int(ids[0, 1])
