"""Model folders by name: a local directory, or a repository of the Hugging Face Hub.

Fetched files stay in the Hub's own cache, so a second call needs no network. Pickled weights are
never fetched.
"""

import fnmatch
import pathlib
import re
from collections.abc import Iterable, Sequence

from ccafl_jax.models.tensor_files import PICKLED, PREFERRED, weight_files

PATTERNS = (
    "open_clip_config.json",
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_CONFIG = ("open_clip_config.json", "config.json")
_TOKENIZER = ("vocab.json", "tokenizer.json")
_TIMEOUT = 10.0  # seconds for the first answer of the Hub


def local_directory(
    name: str | pathlib.Path,
    *,
    patterns: Sequence[str] = PATTERNS,
    revision: str | None = None,
) -> pathlib.Path:
    """The local directory of a model.

    Args:
      name: a directory, taken as it is; or, as text, a Hub id "owner/name", looked up in the local
        cache first and fetched where that does not have it. A directory of that name comes first.
      patterns: what to fetch, of the top level of a repository. Of several weights there,
        open_clip_model.safetensors alone is fetched, else model.safetensors alone.
      revision: branch, tag or commit of the repository; None: its main branch.

    Returns:
      The directory. One of the Hub's cache is not to be written to.

    Raises:
      FileNotFoundError: if there is no such directory and the Hub does not deliver: what went
        wrong, and which files to place where.
      ValueError: if `name` is a file, or it is unclear which weights to fetch.
      ImportError: if a Hub id is given and huggingface_hub is not installed.
    """
    directory = pathlib.Path(name).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise ValueError(f"{directory} is a file; pass the directory of the model that holds it")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise FileNotFoundError(
            f"no directory {directory}; place there open_clip_config.json or config.json, the "
            "*.safetensors weights and the tokenizer files of a CLIP model, or name a Hub id such "
            "as timm/resnet50_clip.openai"
        )
    hub = _hub(name)
    cached = _cached(hub, name, patterns, revision)
    if cached and not (_lacks(cached, _CONFIG, patterns) or _lacks(cached, _TOKENIZER, patterns)):
        return cached
    try:
        listed = hub.HfApi().model_info(name, revision=revision, timeout=_TIMEOUT).siblings or ()
    except Exception as error:  # the Hub's HTTP library, and so its errors, differ by version
        # Without its tokenizer a model still serves for images.
        if cached and not _lacks(cached, _CONFIG, patterns):
            return cached
        raise _failure(name, _reason(hub, error, revision), patterns) from error
    others, weights = _wanted(name, [entry.rfilename for entry in listed], patterns)
    try:
        # The weights come last: where they are in the cache, the rest is.
        for files in (others, weights):
            if files:
                fetched = hub.snapshot_download(name, revision=revision, allow_patterns=files)
        weight_files(fetched)
    except Exception as error:
        raise _failure(name, _reason(hub, error, revision), patterns) from error
    return pathlib.Path(fetched)


def _cached(hub, name: str, patterns: Sequence[str], revision: str | None) -> pathlib.Path | None:
    """The snapshot of the local cache, if it has weights."""
    # The Hub's library misses weights that were passed over on purpose if it is asked for all.
    others = [p for p in patterns if not p.endswith((".safetensors", ".safetensors.index.json"))]
    try:
        directory = hub.snapshot_download(
            name, revision=revision, allow_patterns=others, local_files_only=True
        )
        weight_files(directory)
    except (OSError, ValueError):
        return None
    return pathlib.Path(directory)


def _lacks(directory: pathlib.Path, names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether none of these files is there, though the patterns ask for one."""
    names = [name for name in names if _matches(name, patterns)]
    return bool(names) and not any((directory / name).is_file() for name in names)


def _wanted(
    name: str, listed: Sequence[str], patterns: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What to fetch of a repository: other files, weights."""
    top = sorted(file for file in listed if "/" not in file)
    files = [f for f in top if _matches(f, patterns) and not f.endswith(PICKLED)]
    weights = [f for f in files if f.endswith(".safetensors")]
    indexes = [f for f in files if f.endswith(".safetensors.index.json")]
    others = [f for f in files if f not in weights and f not in indexes]
    pickled = [f for f in top if f.endswith(PICKLED)]
    if not weights:
        raise FileNotFoundError(
            f"{name} on the Hub has no *.safetensors weights"
            + (
                f", only {pickled}: pickled files can run code when they are read and are "
                "refused; fetch them yourself and see scripts/convert_weights.py"
                if pickled
                else "; name the repository of a model that has"
            )
        )
    for preferred in PREFERRED:
        if preferred in weights:
            return others, [preferred]
    if len(weights) > 1 and len(indexes) != 1:
        raise ValueError(
            f"{name} on the Hub has several weight files {weights}; place one of them with the "
            f"other files in a directory, e.g. {_folder(name)}, and pass that"
        )
    return others, indexes + weights


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _reason(hub, error: Exception, revision: str | None) -> str:
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):  # also a RepositoryNotFoundError
        return "it is gated: accept its terms on its page and log in (hf auth login), or"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the id, or"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; name another, or"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "it is not in the local cache, and HF_HUB_OFFLINE is set; unset it, or"
    text = " ".join(str(error).split())
    return f"it cannot be fetched ({type(error).__name__}: {text[:160]});"


def _failure(name: str, reason: str, patterns: Sequence[str]) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name} is no local directory, and as an id of the Hugging Face Hub {reason} on a machine "
        f"with a network download what {name} has of {', '.join(patterns)} into a directory, e.g. "
        f"{_folder(name)}, and pass that directory"
    )


def _folder(name: str) -> pathlib.Path:
    return pathlib.Path("weights", name.partition("/")[2])


def _hub(name: str):
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            f"{name} is no local directory, and fetching it from the Hub needs huggingface_hub: "
            "pip install huggingface_hub"
        ) from error
    return huggingface_hub
