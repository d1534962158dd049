"""Texts to token ids with the tokenizer files of a model directory."""

import os
import pathlib

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
        self._tokenizer = CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
        self.start = int(self._tokenizer.bos_token_id)
        self.end = int(self._tokenizer.eos_token_id)

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
