import json
import shutil

import numpy as np
import pytest

from ccafl_jax.models import prompts
from ccafl_jax.models.clip import Tokenizer

MERGES = ["p h", "o t", "ph ot", "phot o</w>", "o f</w>", "m a", "ma n</w>", "p e", "pe r"]
MERGES += ["s o", "so n</w>", "per son</w>"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A vocabulary in CLIP's layout: letters, letters that end a word, merges, two marks."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = letters + [f"{c}</w>" for c in letters]
    tokens += [merge.replace(" ", "") for merge in MERGES]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    path = tmp_path_factory.mktemp("tokenizer")
    vocab = {token: i for i, token in enumerate(tokens)}
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer(directory)


def expected(directory, *tokens):
    vocab = json.loads((directory / "vocab.json").read_text())
    return [vocab[t] for t in ("<|startoftext|>", *tokens, "<|endoftext|>")]


def test_ids_and_end(directory, tokenizer):
    ids, eot = tokenizer.encode(["A photo of a man.", "x"], 12)
    assert ids.dtype == eot.dtype == np.int32 and ids.shape == (2, 12)
    first = expected(directory, "a</w>", "photo</w>", "of</w>", "a</w>", "man</w>", ".</w>")
    assert ids[0].tolist() == first + [0] * 4
    assert ids[1, :3].tolist() == expected(directory, "x</w>")
    assert eot.tolist() == [7, 2]


def test_template(directory, tokenizer):
    template = prompts.prompt_template(tokenizer)
    words = ["a</w>", "photo</w>", "of</w>", "a</w>", *["x</w>"] * 4, "person</w>", ".</w>"]
    assert list(template.ids) == expected(directory, *words)
    assert template.learned == (5, 6, 7, 8)


def test_too_long(tokenizer):
    with pytest.raises(ValueError, match="'a a a a' has 6 tokens, more than 5"):
        tokenizer.encode(["a", "a a a a"], 5)


def test_no_files(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"tokenizer.json, or vocab.json and merges"):
            Tokenizer(place)


def cut(name, end):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def without_photo(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    del vocab["photo</w>"]
    (folder / "vocab.json").write_text(json.dumps(vocab))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut("vocab.json", 300), "EOF while parsing"),
        (cut("vocab.json", 0), "EOF while parsing"),
        (cut("merges.txt", 15), "Merges text file invalid"),
        (cut("merges.txt", 22), r"no merge makes 10 tokens, e.g. \['phot', 'photo</w>', 'of</w>'"),
        (cut("merges.txt", 0), "no merge makes 12 tokens"),
        (without_photo, "`photo</w>` out of vocabulary"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "Expecting property name"),
    ],
)
def test_damaged_files(directory, tmp_path, damage, reason):
    folder = tmp_path / "clip"
    shutil.copytree(directory, folder)
    damage(folder)
    with pytest.raises(ValueError, match=rf"clip: the tokenizer files are .*{reason}") as error:
        Tokenizer(folder)
    assert "fetch tokenizer.json, or vocab.json and merges.txt" in str(error.value)
    assert "\n" not in str(error.value)
