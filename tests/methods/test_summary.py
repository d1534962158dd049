"""What a finished run reports: the last epoch, with the name of its data set, beside its paper."""

import dataclasses

import numpy as np
import pytest

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.progress import Progress, summarize
from ccafl_jax.training.features import score
from ccafl_jax.training.summary import result_table, summary_rows
from tests.methods.small_run import small_dataset


def figures(value, dataset="msmt17_v2"):
    return {"dataset": dataset, "mAP": value, "rank1": value}


def summary(config=None, dataset="msmt17_v2"):
    progress = Progress(
        zero_shot=figures(0.95) | {"g": figures(0.9)},
        stages=[
            {"name": "prompts", "loss": 1.0, **figures(0.95), "seconds": 1.0},
            {"name": "intra", **figures(0.8), "checkpoint": 3, "seconds": 1.0},
            {"name": "inter", **figures(0.25), "checkpoint": 7, "seconds": 1.0},
        ],
    )
    counts = {"classes": 24, "train_images": 72, "seconds": 3.0}
    return summarize(progress, config or CCAFLConfig(), dataset=dataset, **counts)


def test_the_headline_is_the_last_epoch_not_the_best():
    assert summary()["final"] == figures(0.25)


def test_the_headline_before_any_training_of_the_encoder():
    progress = Progress(
        zero_shot=figures(0.5) | {"g": figures(0.6)}, stages=[{"name": "prompts", **figures(0.5)}]
    )
    counts = {"classes": 24, "train_images": 72, "seconds": 1.0}
    assert summarize(progress, CCAFLConfig(), dataset="x", **counts)["final"] == figures(0.5)


def test_every_row_names_the_data_set():
    table = result_table(summary_rows(summary()))
    rows = table.splitlines()[1:]
    assert len(rows) == 4 and all(row.startswith("msmt17_v2  ") for row in rows)
    assert rows[-1].split()[-6:] == ["25.0", "25.0", "-", "-", "-", "-"]
    assert summary()["dataset"] == "msmt17_v2"
    unknown = result_table([("W, checkpoint 3", {"mAP": 0.5})]).splitlines()[1]
    assert unknown.startswith("-  W, checkpoint 3 ")


def test_figures_carry_the_name_of_their_data_set():
    dataset = dataclasses.replace(small_dataset(), name="msmt17_v1")
    features = np.random.default_rng(0).normal(size=(48, 4))
    assert score(features, dataset)["dataset"] == "msmt17_v1"


@pytest.mark.parametrize(
    ("published_on", "shown"), [("msmt17_v2", "mAP 58.9"), ("", "mAP 58.9"), ("msmt17_v1", "")]
)
def test_published_figures_of_another_set_are_left_out(published_on, shown):
    config = CCAFLConfig(published="mAP 58.9", published_on=published_on)
    assert summary(config)["published"] == shown
