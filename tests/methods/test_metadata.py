"""What a resumed run may not change: its options, code, classes and images."""

import copy
import dataclasses
import json
import logging

import numpy as np
import pytest

from ccafl_jax.data.labels import intra_camera_labels
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.data.sources import FolderSource, PixelFormat
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.metadata import (
    FREE_OPTIONS,
    check_resumable,
    class_digest,
    class_names,
    describe_run,
    training_digest,
)
from ccafl_jax.training import fingerprint
from tests.deploy import tiny

CONFIG = CCAFLConfig()
PID, CAMID = np.array([1, 1, 2, 2, 3, 3]), np.array([0, 1, 0, 1, 0, 1])


def records(pid):
    source = FolderSource("", Names.pack([f"{row}.jpg" for row in range(len(pid))]))
    return Records(source, np.arange(len(pid)), pid, CAMID)


def described(config=CONFIG, *, pid=PID, root="", workdir="/w"):
    """As a run describes itself, and as a checkpoint gives it back."""
    train = records(pid)
    dataset = ReIDDataset("small", root, train, train, train, (1, 2), {})
    labels = intra_camera_labels(pid, CAMID)
    found = describe_run(
        "ccafl",
        config,
        tiny.resnet_config(),
        dataset,
        PixelFormat(config.data.height, config.data.width),
        workdir=workdir,
        classes=labels.num_classes,
        training_set=training_digest(train),
        class_table=class_digest(labels),
        class_names=class_names(labels, (1, 2)),
    )
    return json.loads(json.dumps(found))


def changed(name, value, config=CONFIG):
    """The options with one of them, named with dots, replaced."""
    group, _, rest = name.partition(".")
    if rest:
        value = changed(rest, value, getattr(config, group))
    return dataclasses.replace(config, **{group: value})


def test_the_same_run_is_resumed_without_a_word(caplog):
    check_resumable(described(), described(), "/w")
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.base_lr", 0.001, r"optimizer\.base_lr is 0\.00035 there and 0\.001 here"),
        ("seed", 2, "seed is 1 there and 2 here"),
        ("association.rate", "auto", r"association\.rate is 1\.7 there and auto here"),
        ("optimizer.milestones", (1,), r"milestones is \[40, 50\] there and \[1\] here"),
        ("stages", ("prompts",), None),
        ("devices", 2, None),
        ("keep_checkpoints", 5, None),
        ("data.root", "/elsewhere", None),
        ("data.cache", "/cache", None),
        ("data.source", "folder", None),
        ("published", "mAP 1", None),
        ("published_on", "market1501", None),
    ],
)
def test_options_that_change_results_are_refused(name, value, message):
    asked = described(changed(name, value))
    if message is None:
        check_resumable(described(), asked, "/w")
        return
    with pytest.raises(ValueError, match=message) as error:
        check_resumable(described(), asked, "/w")
    text = str(error.value)
    assert text.startswith("/w was started with other options: ")
    assert text.count(" there and ") == 1 and "--allow_changes" in text and "\n" not in text


def test_three_differences_are_named_and_the_others_counted():
    asked = CONFIG
    for name in ("seed", "icdl.w", "text.smoothing", "ical.margin", "triplet.margin"):
        asked = changed(name, 0, asked)
    with pytest.raises(ValueError, match="and 2 more; use those") as error:
        check_resumable(described(), described(asked), "/w")
    assert str(error.value).count(" there and ") == 3


def test_every_free_option_exists_and_has_a_reason():
    config = dataclasses.asdict(CONFIG)
    for name, reason in FREE_OPTIONS.items():
        group, _, rest = name.partition(".")
        assert group in config and (not rest or rest in config[group]) and reason, name


def test_other_code_is_refused_by_the_name_of_the_file():
    stored = described()
    stored["code"]["losses/triplet.py"] = "0" * 16
    del stored["code"]["memory.py"]
    with pytest.raises(ValueError, match="was started with other code: ccafl_jax/losses") as error:
        check_resumable(stored, described(), "/w")
    assert "ccafl_jax/losses/triplet.py is 0000000000000000 there and " in str(error.value)
    assert "ccafl_jax/memory.py is absent there" in str(error.value)


def test_changes_may_be_allowed(caplog):
    stored = described()
    stored["code"]["version"] = "0.0.9"
    asked = described(changed("seed", 2))
    with caplog.at_level(logging.WARNING, "ccafl_jax"):
        check_resumable(stored, asked, "/w", allow_changes=True)
    (message,) = caplog.messages
    assert "other options and other code: seed is 1 there and 2 here" in message
    assert "ccafl_jax/version is 0.0.9 there" in message


@pytest.mark.parametrize("allow", [False, True])
def test_other_images_classes_and_models_are_never_allowed(allow):
    def refused(run, message):
        with pytest.raises(ValueError, match=message):
            check_resumable(described(), run, "/w", allow_changes=allow)

    refused(described(pid=PID[::-1]), "other images, identities or cameras, of as many classes")
    refused(described(pid=np.ones(6, int)), "6 classes, the training set has 2")
    refused(described() | {"class_table": "x"}, "other images, identities or cameras")
    for key, field, value in (
        ("model", "embed_dim", 7),
        ("preprocess", "height", 128),
    ):
        run = copy.deepcopy(described())
        run[key][field] = value
        refused(run, rf"other options: {key}\.{field} is \d+ there and {value} here; resume with")


def test_other_libraries_are_only_warned_of(caplog):
    stored = described()
    stored["libraries"]["jax"] = "0.9.9"
    with caplog.at_level(logging.WARNING, "ccafl_jax"):
        check_resumable(stored, described(), "/w")
    (message,) = caplog.messages
    assert message.startswith("/w was started with other libraries: jax is 0.9.9 there and ")


def test_the_class_table_sees_images_cameras_and_identities():
    labels = intra_camera_labels(PID, CAMID)
    others = [
        dataclasses.replace(labels, **{name: getattr(labels, name)[::-1]})
        for name in ("label", "cam_of", "pid_of")
    ]
    assert len({class_digest(x) for x in [labels, *others]}) == 4


def test_classes_are_named_by_camera_code_and_identity():
    names = class_names(intra_camera_labels(PID, CAMID), (3, 7))
    assert names == {"camera": [3, 3, 3, 7, 7, 7], "identity": [1, 2, 3, 1, 2, 3]}
    assert described()["class_names"]["camera"] == [1, 1, 1, 2, 2, 2]


def test_a_checkpoint_without_names_of_classes_is_resumed():
    stored = described()
    del stored["class_names"]  # as older versions wrote them
    check_resumable(stored, described(), "/w")


def test_the_code_is_that_of_every_file(tmp_path, monkeypatch):
    (tmp_path / "rooms").mkdir()
    for name in ("__init__.py", "rooms/a.py"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(fingerprint.ccafl_jax, "__file__", str(tmp_path / "__init__.py"))
    before = fingerprint.code_fingerprint.__wrapped__()
    assert list(before) == ["version", "__init__.py", "rooms/a.py"]
    (tmp_path / "rooms" / "a.py").write_text("x = 1")
    after = fingerprint.code_fingerprint.__wrapped__()
    assert [name for name in after if after[name] != before[name]] == ["rooms/a.py"]


def test_the_libraries_have_versions():
    found = fingerprint.library_versions()
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} <= set(found)
    assert all(version[0].isdigit() for version in found.values())


def test_a_data_set_inside_the_run_folder_is_named_relative_to_it(tmp_path):
    inside = str(tmp_path / "data")
    assert described(root=inside, workdir=tmp_path)["data_root"] == "data"
    assert described(root=inside, workdir=tmp_path / "w")["data_root"] == inside
    assert described(root=inside, workdir="gs://bucket/w")["data_root"] == inside
