import pathlib
import types

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

from ccafl_jax.models.hub import PATTERNS, local_directory
from ccafl_jax.models.tensor_files import write_shards, write_tensors

ID = "timm/resnet50_clip.openai"
SMALL = ("open_clip_config.json", "config.json", "vocab.json", "merges.txt")
LISTED = (
    *SMALL,
    "README.md",
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "onnx/model.safetensors",
)


class Hub:
    """Stands for the Hub and its cache: a folder of files, and what was asked for."""

    def __init__(self, cache, monkeypatch):
        self.cache, self.listed, self.failure, self.late_failure = cache, LISTED, None, None
        self.fetched, self.listings = [], []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(
            huggingface_hub, "HfApi", lambda: types.SimpleNamespace(model_info=self.model_info)
        )

    def model_info(self, name, *, revision, timeout):
        assert 0 < timeout <= 30
        self.listings.append((name, revision))
        if self.failure:
            raise self.failure
        return types.SimpleNamespace(
            siblings=[types.SimpleNamespace(rfilename=file) for file in self.listed]
        )

    def snapshot_download(self, name, *, revision, allow_patterns, local_files_only=False):
        if local_files_only:
            if not self.cache.is_dir():
                raise errors.LocalEntryNotFoundError("not in the cache")
            return str(self.cache)
        if self.late_failure:
            raise self.late_failure
        self.fetched += allow_patterns
        for file in allow_patterns:
            self.place(file)
        return str(self.cache)

    def place(self, *files):
        self.cache.mkdir(exist_ok=True)
        for file in files:
            if file.endswith(".safetensors"):
                write_tensors(self.cache / file, {"a": np.zeros(1)})
            else:
                (self.cache / file).write_text("{}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return Hub(tmp_path / "cache", monkeypatch)


def http_error(kind, message="401 Client Error.\n\nmore lines"):
    return kind(message, response=types.SimpleNamespace(headers={}, request=None, status_code=401))


def error_of(function, kind=FileNotFoundError):
    with pytest.raises(kind) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_is_taken_as_it_is(hub, tmp_path, monkeypatch):
    assert local_directory(tmp_path) == tmp_path
    assert local_directory(str(tmp_path)) == tmp_path
    # also one whose relative name looks like an id
    (tmp_path / "timm" / "resnet50_clip.openai").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_directory(ID) == pathlib.Path(ID)
    assert not hub.listings


@pytest.mark.parametrize(
    "name", ["nothing", "a/b/c", "./a/b", "../b", "/no/where", "a b/c", pathlib.Path("a/b")]
)
def test_what_is_neither_directory_nor_id(hub, name):
    message = error_of(lambda: local_directory(name))
    assert message.startswith(f"no directory {pathlib.Path(name)}; place there")
    assert ID in message
    assert not hub.listings


def test_a_file_is_no_directory(hub, tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {})
    assert str(path) in error_of(lambda: local_directory(path), ValueError)


def test_fetches_what_is_needed_once(hub):
    assert local_directory(ID, revision="v1") == hub.cache
    assert hub.listings == [(ID, "v1")]
    assert sorted(hub.fetched) == sorted([*SMALL, "open_clip_model.safetensors"])
    assert hub.fetched[-1] == "open_clip_model.safetensors"
    # from the cache from then on, with or without a network
    hub.fetched.clear()
    hub.failure = OSError("no network")
    assert local_directory(ID, revision="v1") == hub.cache
    assert hub.listings == [(ID, "v1")]
    assert not hub.fetched


def test_fetches_all_shards_and_their_index(hub, tmp_path):
    index = write_shards(hub.cache, {"a": np.zeros(1), "b": np.zeros(1)}, 2)
    shards = sorted(path.name for path in hub.cache.glob("*.safetensors"))
    hub.cache.rename(tmp_path / "source")
    hub.listed = (*SMALL, index.name, *shards)

    def place(*files):
        hub.cache.mkdir(exist_ok=True)
        for file in files:
            source = tmp_path / "source" / file
            (hub.cache / file).write_bytes(source.read_bytes() if source.exists() else b"{}")

    hub.place = place
    assert local_directory(ID) == hub.cache
    assert sorted(hub.fetched) == sorted([*SMALL, index.name, *shards])


def test_patterns_say_what_is_fetched(hub):
    local_directory(ID, patterns=("config.json", "model.safetensors", "*.bin"))
    assert hub.fetched == ["config.json", "model.safetensors"]
    # the cache has all that these patterns ask for, but not what the default ones do
    hub.fetched.clear()
    local_directory(ID, patterns=("config.json", "model.safetensors"))
    assert hub.fetched == []
    local_directory(ID)
    assert "vocab.json" in hub.fetched


def test_a_cache_of_another_program_is_completed(hub):
    hub.place("config.json", "model.safetensors")
    local_directory(ID)
    assert {"vocab.json", "open_clip_model.safetensors"} <= set(hub.fetched)


def test_without_a_network_weights_and_configuration_suffice(hub):
    hub.failure = OSError("no network")
    hub.place("config.json", "model.safetensors")
    assert local_directory(ID) == hub.cache
    (hub.cache / "config.json").unlink()
    assert "no network" in error_of(lambda: local_directory(ID))


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError("[Errno -2] Name or service\nnot known"), "OSError: [Errno -2] Name or service"),
        (http_error(errors.RepositoryNotFoundError), "no such repository, or it is private"),
        (http_error(errors.GatedRepoError), "gated: accept its terms"),
        (http_error(errors.RevisionNotFoundError), "no revision 'v1'"),
        (http_error(errors.HfHubHTTPError, "503\nbusy"), "HfHubHTTPError: 503 busy"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (errors.HFValidationError("bad id"), "HFValidationError: bad id"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_what_went_wrong_and_what_to_place_where(hub, failure, said, late):
    if late:
        hub.late_failure = failure
    else:
        hub.failure = failure
    message = error_of(lambda: local_directory(ID, revision="v1"))
    assert message.startswith(f"{ID} is no local directory")
    assert said in message
    assert "weights/resnet50_clip.openai" in message
    assert all(pattern in message for pattern in PATTERNS)


def test_pickles_are_not_fetched(hub):
    hub.listed = (*SMALL, "pytorch_model.bin")
    message = error_of(lambda: local_directory(ID))
    assert "only ['pytorch_model.bin']" in message
    assert "scripts/convert_weights.py" in message
    hub.listed = SMALL
    assert "no *.safetensors weights" in error_of(lambda: local_directory(ID))
    assert hub.fetched == []


def test_several_weights_are_not_guessed(hub):
    hub.listed = (*SMALL, "a.safetensors", "b.safetensors")
    assert "['a.safetensors', 'b.safetensors']" in error_of(lambda: local_directory(ID), ValueError)
    assert hub.fetched == []


def test_the_real_library_finds_its_cache_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE" in error_of(lambda: local_directory(ID))
    repository = tmp_path / f"models--{ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for file in SMALL:
        (snapshot / file).write_text("{}")
    write_tensors(snapshot / "open_clip_model.safetensors", {"a": np.zeros(1)})
    assert local_directory(ID) == snapshot
    assert local_directory(ID, revision="0" * 40) == snapshot
    assert "HF_HUB_OFFLINE" in error_of(lambda: local_directory(ID, revision="v1"))
