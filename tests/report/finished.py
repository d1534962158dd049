"""A finished run folder that took no training: a tiny model, tiny images, figures by hand."""

import dataclasses
import functools
import json

import numpy as np

from ccafl_jax.deploy.run_folder import write_run
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.report.collect import collect_run, rank_test_set
from ccafl_jax.training import snapshots
from data_prep import synthetic
from tests.deploy import tiny

FIGURES = {"dataset": "market_like", "rank5": 0.8, "rank10": 0.9, "mINP": 0.1}
STAGES = ("zero_shot", "intra", "inter")


def finished_run(root):
    """Writes `root/run` and its data set `root/market`; returns the run folder."""
    size = {"seed": 3, "height": 32, "width": 16, "train_ids": 2, "test_ids": 6, "cameras": 3}
    synthetic.write_folder(root / "market", synthetic.SyntheticConfig(**size))
    config = json.loads(json.dumps(dataclasses.asdict(CCAFLConfig())))
    config["data"]["name"] = "market_like"
    config["published"], config["published_on"] = "mAP 90.1, rank-1 96.1", "market1501"
    bundle = dataclasses.replace(
        tiny.bundle("resnet"),
        recipe={"method": "ccafl", "config": config},
        data_root=str(root / "market"),
        camera_codes=(1, 2, 3),
    )
    run = root / "run"
    write_run(run, bundle)
    (run / "summary.json").write_text(json.dumps(summary()))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log()))
    keep_snapshots(run)
    return run


def collected(run, **options):
    """The report of a run, its test set ranked with options."""
    return collect_run(run, ranked=functools.partial(rank_test_set, run, **options))


def summary():
    stages = [
        {"name": "prompts", "loss": 1.0, "seconds": 2.0},
        {"name": "intra", **FIGURES, "mAP": 0.4, "rank1": 0.5, "checkpoint": 1, "seconds": 60.0},
        {"name": "inter", **FIGURES, "mAP": 0.6, "rank1": 0.7, "checkpoint": 3, "seconds": 90.0},
    ]
    return {
        "method": "ccafl",
        "zero_shot": FIGURES | {"mAP": 0.2, "rank1": 0.3},
        "stages": stages,
        "final": FIGURES | {"mAP": 0.6, "rank1": 0.7},
        "seconds": 4000.0,
        "published": "",
        "dataset": "market_like",
        "train_images": 99,
    }


def log():
    for epoch in range(3):
        yield {
            "dataset": "market_like",
            "stage": "encoder",
            "epoch": epoch,
            "time": 1.0,
            "total": 3.0 - epoch,
            "inter": 1.0,
            "grad_norm": 9.0,
            "learning_rate": 1e-3,
            "association_clusters": 10.0 + epoch,
            "association_precision": 0.5,
            **({"mAP": 0.6} if epoch == 2 else {}),
        }


@functools.cache
def features(stage):
    """Of ten people under three cameras, farther apart from stage to stage."""
    pid = np.repeat(np.arange(10), 9)
    rng = np.random.default_rng(1)
    people = rng.normal(size=(10, 6)) * (1 + STAGES.index(stage))
    return people[pid] + rng.normal(size=(len(pid), 6)), pid, np.tile(np.arange(3), 30)


def keep_snapshots(run):
    for stage in STAGES:
        values, pid, camid = features(stage)
        snapshots.keep(run, stage, snapshots.sample(values, pid, camid, pid))
