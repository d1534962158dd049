import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ccafl_jax
from ccafl_jax.models import prompts
from ccafl_jax.models.clip import Tokenizer, load_clip
from data_prep import synthetic, tiny_clip
from data_prep.synthetic.cameras import NEAR, VISIBLE
from data_prep.synthetic.infrared import tones
from data_prep.synthetic.people import COLOURS

ASSET = pathlib.Path(ccafl_jax.__file__).parent / "assets" / "tiny_clip"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary")
    tiny_clip.write_tokenizer(path, sentences=300)
    return path


def test_every_word_is_one_token(vocabulary):
    vocab = json.loads((vocabulary / "vocab.json").read_text())
    tokenizer = Tokenizer(vocabulary)
    words = [word.lower() for word in synthetic.VOCABULARY if "-" not in word]
    ids, eot = tokenizer.encode([*words, "person"], 8)
    assert (eot == 2).all()
    assert ids[:, 1].tolist() == [vocab[f"{word}</w>"] for word in [*words, "person"]]
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert max(vocab, key=vocab.get) == "<|endoftext|>"


def test_vocabulary_is_deterministic(vocabulary, tmp_path):
    for _ in range(4):
        tiny_clip.write_tokenizer(tmp_path, sentences=300)
        for name in ("vocab.json", "merges.txt"):
            assert (tmp_path / name).read_text() == (vocabulary / name).read_text()


def test_prompt_fits_the_vocabulary(vocabulary):
    template = prompts.prompt_template(Tokenizer(vocabulary))
    assert template.learned == (5, 6, 7, 8) and template.eot == 11


@pytest.mark.ci
def test_complete_captions_fit_the_context(vocabulary):
    people = synthetic.draw_people(range(1000), seed=3, domain="pretrain")
    rng = np.random.default_rng(0)
    texts = [synthetic.caption(one, rng, drop=(0.0, 0.0)) for one in people]
    _, eot = Tokenizer(vocabulary).encode(texts, tiny_clip.CONTEXT)
    assert eot.max() > 35


def test_clip_loss_by_hand():
    eye = jnp.eye(3)
    scale = jnp.log(2.0)
    expected = -np.log(np.exp(2) / (np.exp(2) + 2))
    np.testing.assert_allclose(tiny_clip.clip_loss(5 * eye, eye, scale), expected, rtol=1e-6)
    uniform = tiny_clip.clip_loss(jnp.ones((4, 3)), jnp.ones((4, 3)), scale)
    np.testing.assert_allclose(uniform, np.log(4), rtol=1e-6)
    one_sided = jnp.array([[1.0, 0], [1.0, 0]]), jnp.eye(2)
    z = np.array([[2.0, 0], [2.0, 0]])
    rows = np.log(np.exp(z).sum(1)) - np.diag(z)
    columns = np.log(np.exp(z).sum(0)) - np.diag(z)
    np.testing.assert_allclose(
        tiny_clip.clip_loss(*one_sided, scale), (rows.mean() + columns.mean()) / 2, rtol=1e-6
    )


def test_clip_loss_caps_the_scale():
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 4))
    large, larger = (tiny_clip.clip_loss(x, y, jnp.log(s)) for s in (100.0, 1000.0))
    np.testing.assert_allclose(large, larger, rtol=1e-6)


@pytest.fixture(scope="module")
def shipped():
    return load_clip(ASSET)


def test_shipped_model_is_small_and_complete(shipped):
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 6e6
    names = {path.name for path in ASSET.iterdir()}
    assert {"README.md", "vocab.json", "merges.txt", "open_clip_config.json"} <= names
    vocab = json.loads((ASSET / "vocab.json").read_text())
    assert shipped.config.text.vocab == len(vocab)
    assert shipped.config.vision.grid == (4, 2)
    assert shipped.config.activation == "quick_gelu"


@pytest.mark.slow
def test_shipped_vocabulary_is_that_of_the_code(tmp_path):
    tiny_clip.write_tokenizer(tmp_path)
    assert (tmp_path / "vocab.json").read_text() == (ASSET / "vocab.json").read_text()


def test_shipped_model_is_for_this_generator():
    figures = json.loads((ASSET / "figures.json").read_text())
    assert figures["generator"] == synthetic.VERSION
    assert figures["generator_sample_sha256"] == synthetic.SAMPLE_SHA256
    for row in figures["zero_shot"]:
        for name in ("f", "g"):
            assert tiny_clip.LOWEST <= row[name]["times_chance"] <= tiny_clip.HIGHEST
    assert (ASSET / "README.md").read_text() == tiny_clip.model_card(figures)


def test_shipped_model_of_infrared_is_of_its_size_and_settings():
    folder = ASSET.with_name("tiny_clip_infrared")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["settings"]["colourless"] == 0.5
    assert figures["generator_sample_sha256"] == synthetic.SAMPLE_SHA256
    assert (folder / "README.md").read_text() == tiny_clip.model_card(figures)
    # Crossing from infrared to visible light remains to be learnt.
    assert all(row["f"]["times_chance"] < 2 for row in figures["across_light"])
    model = load_clip(folder)
    assert model.config.embed_dim == tiny_clip.EMBED_DIM


def test_shipped_towers_belong_together(shipped):
    """People it never saw: the right caption of 16 is found far more often than by chance.

    Chance is 1/16 with a standard deviation of .015 over 256 people.
    """
    config = tiny_clip.TinyClipConfig(seed=77, people=256, cameras=12, images=1, captions=1)
    pairs = tiny_clip.draw_pairs(config, Tokenizer(ASSET))
    images = tiny_clip.normalize(pairs.images)
    g = jax.jit(lambda x: shipped.visual(x, train=False))(images)
    t = jax.jit(shipped.text.encode_ids)(pairs.ids[:, 0, 0], pairs.eot[:, 0, 0])
    lengths = jnp.mean(jnp.linalg.norm(g, axis=1)) * jnp.mean(jnp.linalg.norm(t, axis=1))
    scale = jnp.exp(shipped.logit_scale[...])
    np.testing.assert_allclose(lengths, scale, rtol=0.15)
    cosine = np.asarray(
        (g / jnp.linalg.norm(g, axis=1, keepdims=True))
        @ (t / jnp.linalg.norm(t, axis=1, keepdims=True)).T
    )
    blocks = [cosine[i : i + 16, i : i + 16] for i in range(0, 256, 16)]
    hits = np.mean([(block.argmax(1) == np.arange(16)).mean() for block in blocks])
    assert hits > 2 / 16


def test_pairs_are_deterministic_and_of_the_domain(vocabulary):
    config = tiny_clip.TinyClipConfig(people=4, cameras=2, images=2, captions=2)
    tokenizer = Tokenizer(vocabulary)
    one, two = (tiny_clip.draw_pairs(config, tokenizer) for _ in range(2))
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.ids, two.ids)
    assert one.images.shape == (8, 64, 32, 3) and one.ids.shape[:3] == (4, 1, 2)
    assert not one.kind.any()
    assert one.person.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (np.take_along_axis(one.ids, one.eot[..., None], -1) == one.ids.max()).all()


def test_images_without_colours_have_captions_of_their_own(tmp_path):
    tiny_clip.write_tokenizer(tmp_path, sentences=300, colourless=True)
    config = tiny_clip.TinyClipConfig(people=40, cameras=2, images=2, captions=2, colourless=0.6)
    pairs = tiny_clip.draw_pairs(config, Tokenizer(tmp_path))
    share = np.bincount(pairs.kind, minlength=4) / len(pairs.kind)
    np.testing.assert_allclose(share, [0.4, 0.2, 0.2, 0.2], atol=0.12)
    spread = np.ptp(pairs.images.astype(int), axis=-1).mean((1, 2))
    assert spread[pairs.kind > 0].max() == 0 < spread[pairs.kind == 0].min()
    assert pairs.ids.shape[:3] == (40, 4, 2)


def test_captions_of_a_grey_or_an_infrared_picture_tell_light_from_dark():
    rng = np.random.default_rng(0)
    people = synthetic.draw_people(range(60), seed=1, domain="pretrain")
    named = {*COLOURS, "blond"}
    for band, opening in ((None, "A photo of"), (VISIBLE, "A photo of"), (NEAR, "An infrared")):
        texts = [tiny_clip.caption_in(one, rng, band) for one in people]
        words = {word.strip(".,") for text in texts for word in text.split()}
        assert all(text.startswith(opening) for text in texts)
        assert {"light", "dark"} <= words or band is None
        assert not named & words or band is None
    black = next(one for one in people if one.value("top_colour") == ("black",))
    assert tones(black, VISIBLE)["top_colour"] == "dark"


@pytest.mark.ci
def test_smoke_run(tmp_path):
    assert tiny_clip.main(["--out", str(tmp_path), "--smoke"]) == 0
    model = load_clip(tmp_path)
    assert model.config.embed_dim == tiny_clip.EMBED_DIM
    assert "Zero-shot" in (tmp_path / "README.md").read_text()
