"""Texts to token ids with the tokenizer files of a model directory."""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np


class Tokenizer:
    """CLIP's byte-pair tokenizer."""

    def __init__(self, directory: str | pathlib.Path):
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt`.

        Args:
          directory: of the model.

        Raises:
          FileNotFoundError: if the files are not there.
          ImportError: if transformers is not installed.
          ValueError: if the files are damaged or do not belong together.
        """
        directory = pathlib.Path(directory)
        names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            raise FileNotFoundError(
                f"{directory} has no tokenizer: place tokenizer.json, or vocab.json and "
                "merges.txt, of the model there"
            )
        # Only the tokenizer is wanted; the advice to install PyTorch would mislead.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        try:
            from transformers import CLIPTokenizer
        except ImportError as error:
            raise ImportError("tokenizing needs transformers: pip install transformers") from error
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
            self.start = int(self._tokenizer.bos_token_id)
            self.end = int(self._tokenizer.eos_token_id)
            unmade = _unmade(json.loads(self._tokenizer.backend_tokenizer.to_str()))
        except Exception as error:  # the library raises bare Exceptions and many other kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(_damaged(directory, reason)) from error
        if unmade:
            raise ValueError(
                _damaged(directory, f"no merge makes {len(unmade)} tokens, e.g. {unmade[:3]}")
            )

    def encode(self, texts: list[str], context_length: int = 77) -> tuple[np.ndarray, np.ndarray]:
        """Token ids with start and end tokens.

        Args:
          texts: n strings.
          context_length: columns of the result.

        Returns:
          ids int32[n, context_length], 0 after the end token, and eot int32[n], its position.

        Raises:
          ValueError: if a text is too long.
        """
        ids = np.zeros((len(texts), context_length), np.int32)
        eot = np.zeros(len(texts), np.int32)
        encoded = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for row, tokens in enumerate(encoded):
            tokens = [self.start, *tokens, self.end]
            if len(tokens) > context_length:
                raise ValueError(
                    f"text {texts[row]!r} has {len(tokens)} tokens, more than {context_length}; "
                    "shorten it"
                )
            ids[row, : len(tokens)] = tokens
            eot[row] = len(tokens) - 1
        return ids, eot


def _unmade(tokenizer: Mapping) -> list[str]:
    """Tokens that no merge makes: merges.txt may be cut short and yet be read without complaint.

    Args:
      tokenizer: in the form of `tokenizer.json`.
    """
    model = tokenizer["model"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    made = {"".join(pair) for pair in pairs} | {t["content"] for t in tokenizer["added_tokens"]}
    return [t for t in model["vocab"] if len(t.removesuffix("</w>")) > 1 and t not in made]


def _damaged(directory: pathlib.Path, reason: str) -> str:
    return (
        f"{directory}: the tokenizer files are damaged or do not belong together ({reason}); fetch "
        "tokenizer.json, or vocab.json and merges.txt, of the model again"
    )
