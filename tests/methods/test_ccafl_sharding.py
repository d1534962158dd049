"""One, two and eight devices: the same losses, tables split over classes, small collectives."""

import dataclasses
import re

import numpy as np
import pytest

from ccafl_jax.methods.ccafl.config import InputConfig, ModelConfig, SamplerConfig, ScheduleConfig
from ccafl_jax.methods.ccafl.dry_run import lower
from ccafl_jax.methods.ccafl.phases import Phase
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.preemption import Preempted
from ccafl_jax.training.scale import ScaleConfig
from tests.methods.small_run import SMALL, small_run

pytestmark = pytest.mark.ci  # whole runs on several devices compile for minutes

TWENTY = dataclasses.replace(
    SMALL,
    # Two groups of batch-norm rows, whatever the devices.
    model=ModelConfig(bn_group=8),
    sampler=SamplerConfig(classes=4, images=4),
    schedule=ScheduleConfig(
        epochs=4, iterations=5, intra_epochs=1, text_start=2, ical_start=3, ical_end=4
    ),
    # A rate at which twenty steps do not amplify the order of sums, or which of two near-tied rows
    # is the hardest.
    optimizer=dataclasses.replace(SMALL.optimizer, base_lr=2e-5, warmup_epochs=0),
)


class Recorder(Loop):
    """A loop that keeps the metrics of all steps."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def steps(self, step, state, batches, found, *, where, each=lambda: None):
        result = super().steps(step, state, batches, found, where=where, each=each)
        self.epochs.append((where, list(found)))
        return result


def losses(tmp_path, **changes):
    run, loop = small_run(tmp_path, TWENTY, **changes), Recorder()
    run.train(loop=loop)
    return run, [step for where, steps in loop.epochs for step in steps if "prompts" not in where]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("one"), devices=1)


def largest_difference(found, expected):
    assert len(found) == len(expected) == 20
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"gid_accuracy", "grad_norm"}:
            worst = max(worst, abs(ours[key] - theirs[key]) / max(1.0, abs(theirs[key])))
        # Which the rate does not hide: a gradient summed over the wrong rows would show.
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-3)
    return worst


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_losses_of_twenty_steps_are_those_of_one_device(one, tmp_path, devices):
    run, found = losses(tmp_path, devices=devices)
    assert largest_difference(found, one[1]) < 1e-5
    np.testing.assert_array_equal(run.progress.clusters, one[0].progress.clusters)


def test_tables_split_over_classes_change_nothing(one, tmp_path):
    """24 classes on 8 devices divide; their 12 clusters do not, and get rows that fill them up."""
    run, found = losses(tmp_path, devices=8, scale=ScaleConfig(shard_classes=True))
    assert largest_difference(found, one[1]) < 1e-5
    bank = run.state.memory["clusters"]
    assert bank.shape[0] == 16 and bank.addressable_shards[0].data.shape[0] == 2
    assert run.state.classifier.addressable_shards[0].data.shape[0] == 3
    assert run.traces == ["prompts", "intra+text", "inter", "inter+text", "inter+text+ical"]


def test_classes_that_the_devices_do_not_divide_get_rows_without_effect(one, tmp_path):
    run, found = losses(tmp_path, devices=5, scale=ScaleConfig(shard_classes=True),
                        sampler=SamplerConfig(classes=5, images=4),
                        prompts=dataclasses.replace(SMALL.prompts, batch=15),
                        model=ModelConfig(bn_group=0))  # fmt: skip
    alone, expected = losses(tmp_path / "1", devices=1,
                             sampler=SamplerConfig(classes=5, images=4),
                             prompts=dataclasses.replace(SMALL.prompts, batch=15),
                             model=ModelConfig(bn_group=0))  # fmt: skip
    assert run.state.classifier.shape[0] == 25 and alone.state.classifier.shape[0] == 24
    assert largest_difference(found, expected) < 1e-5
    np.testing.assert_array_equal(run.state.classifier[24:], 0)


def test_a_split_run_goes_on_with_one_device(one, tmp_path):
    split = {"devices": 8, "scale": ScaleConfig(shard_classes=True)}
    small_run(tmp_path, TWENTY, stages=("prompts", "intra"), **split).train()
    run, loop = small_run(tmp_path, TWENTY, devices=1), Recorder()
    run.train(resume=True, loop=loop, allow_changes=True)
    found = [step for _, steps in loop.epochs for step in steps]
    expected = one[1][5:]
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours["total"] - theirs["total"]) < 1e-5 * max(1.0, abs(theirs["total"]))


def test_a_split_run_that_was_stopped_inside_an_epoch_goes_on_with_one_device(one, tmp_path):
    """Its 16 rows of 12 clusters become 12 again."""
    split = {"devices": 8, "scale": ScaleConfig(shard_classes=True)}

    def stop(_):
        return run.loop.trained == 10 + 17  # steps of prompts, and of the twenty

    run = small_run(tmp_path, TWENTY, **split)
    with pytest.raises(Preempted):
        run.train(loop=Loop(stop=stop))
    bank = run.saves.inside.restore()["memory"]["clusters"]
    assert len(bank) == 16
    other, loop = small_run(tmp_path, TWENTY, devices=1), Recorder()
    other.train(resume=True, loop=loop)
    found = [step for where, steps in loop.epochs for step in steps]
    for ours, theirs in zip(found, one[1][15:], strict=True):
        assert abs(ours["total"] - theirs["total"]) < 1e-5 * max(1.0, abs(theirs["total"]))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_streamed_images_give_the_losses_of_resident_ones(one, tmp_path, devices):
    run, found = losses(tmp_path, devices=devices, input=InputConfig(kind="streaming"))
    assert not run.images.resident and one[0].images.resident
    assert largest_difference(found, one[1]) < 1e-5


_OPERATION = re.compile(
    r"= (?P<shapes>.*?) (?P<name>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute)(?:-start)?\("
)
_SHAPE = re.compile(r"(?P<type>[a-z]+\d+|pred)\[(?P<sizes>[\d,]*)\]")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "bf16": 2, "f64": 8, "s64": 8}


def collectives(text):
    """Bytes of the results of each collective operation in compiled HLO."""
    found = []
    for line in text.splitlines():
        match = _OPERATION.search(line)
        if match:
            sizes = [
                _BYTES[shape["type"]]
                * int(np.prod([int(n) for n in shape["sizes"].split(",") if n]))
                for shape in _SHAPE.finditer(match["shapes"])
            ]
            found.append((sum(sizes), match["name"]))
    return found


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    "phase", [Phase("intra", text=True), Phase("inter", text=True, ical=True)], ids=lambda p: p.name
)
def test_no_collective_is_larger_than_the_features_and_gradients(tmp_path, phase, split):
    run = small_run(tmp_path, TWENTY, devices=8, scale=ScaleConfig(shard_classes=split))
    found = collectives(lower(run, phase).compile().as_text())
    params = run.state.params.values()
    gradients = 4 * (sum(p.size for p in params) + run.state.classifier.size)
    batch = TWENTY.sampler.classes * TWENTY.sampler.images
    features = 4 * batch * (run.model_config.features + run.model_config.embed_dim)
    assert found and max(found)[0] <= features + gradients, max(found)
    images = batch * SMALL.data.height * SMALL.data.width * 3
    assert all(size < images for size, name in found if name == "all-gather"), sorted(found)[-3:]
