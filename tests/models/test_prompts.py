import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.models import prompts
from tests.golden_data import case_group, golden

CASE = next(case for case in case_group("misc") if case["id"] == "p1_prompt_tokens")
SLOT = 343  # "x" followed by a blank, in CLIP's vocabulary


class FakeTokenizer:
    """Gives the ids of CLIP's vocabulary for the template."""

    def __init__(self, slot=(SLOT,)):
        self.slot = slot

    def encode(self, texts, context_length=77):
        tokens = CASE["expected"]["ids"]
        if texts == ["X"]:
            tokens = [49406, *self.slot, 49407]
        else:
            assert texts == [CASE["inputs"]["text"]]
        ids = np.zeros((1, context_length), np.int32)
        ids[0, : len(tokens)] = tokens
        return ids, np.asarray([len(tokens) - 1])


def test_template_is_the_case():
    template = prompts.prompt_template(FakeTokenizer())
    assert list(template.ids) == CASE["expected"]["ids"]
    assert list(template.learned) == CASE["expected"]["learned_positions"]
    assert template.eot == CASE["expected"]["eot_position"]
    assert list(template.ids) == golden("02_text_s0")["real_tokens"][0, :12].tolist()


@pytest.mark.parametrize("prefix,start", [(4, 5), (5, 6), (6, 7)])
def test_published_shifts(prefix, start):
    template = prompts.prompt_template(FakeTokenizer(), prefix_tokens=prefix)
    assert template.learned == tuple(range(start, start + 4))


def test_shift_beyond_the_sentence():
    with pytest.raises(ValueError, match="must lie between"):
        prompts.prompt_template(FakeTokenizer(), prefix_tokens=7)


def test_vocabulary_that_splits_the_slot():
    with pytest.raises(ValueError, match="splits 'X' into 2 tokens"):
        prompts.prompt_template(FakeTokenizer(slot=(1, 2)))
    with pytest.raises(ValueError, match="four consecutive tokens"):
        prompts.prompt_template(FakeTokenizer(slot=(7,)))


@pytest.mark.parametrize("name,prefix", [("reid", 4), ("ics_market", 5), ("ics_duke", 6)])
def test_assembled_embeddings_golden(name, prefix):
    data = golden("02_text_s0")
    table = golden("02_text_s0_weights")["token_embedding.weight"]
    template = prompts.template_from_ids(data["tiny_tokens"][0, :12], slot=5, prefix_tokens=prefix)
    frozen = prompts.template_embeddings(jnp.asarray(table), template)
    expected = data[f"{name}_prompts"][:, :12]
    learned = data["cls_ctx"][data["labels"]][: len(expected)]
    found = prompts.assemble(frozen, template, jnp.asarray(learned))
    np.testing.assert_array_equal(found, expected)


def test_initial_vectors():
    vectors = prompts.init_prompts(jax.random.key(0), 200, width=16)
    assert vectors.shape == (200, 4, 16) and vectors.dtype == jnp.float32
    assert not vectors.weak_type
    np.testing.assert_allclose(np.std(vectors), 0.02, rtol=0.05)
    np.testing.assert_allclose(np.mean(vectors), 0, atol=1e-3)
