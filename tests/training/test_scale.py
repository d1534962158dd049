"""A larger batch on purpose: what follows for rates and steps."""

import dataclasses

import pytest

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.training.scale import ScaleConfig


@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 2.0), ("linear", 4.0), ("none", 1.0)])
def test_batches_rates_and_steps_follow_the_rule(rule, factor):
    config = CCAFLConfig(scale=ScaleConfig(batch=4, rule=rule))
    found = config.scaled()
    assert found.sampler.classes == 4 * config.sampler.classes
    assert found.sampler.images == config.sampler.images
    assert found.prompts.batch == 4 * config.prompts.batch
    assert found.schedule.iterations == 50
    for rates in (
        (found.optimizer.base_lr, config.optimizer.base_lr),
        (found.optimizer.classifier_lr, config.optimizer.classifier_lr),
        (found.prompts.base_lr, config.prompts.base_lr),
    ):
        assert rates[0] == pytest.approx(factor * rates[1])
    assert found.scaled() == found  # done once


def test_steps_are_rounded_up_and_nothing_changes_at_one():
    assert ScaleConfig(batch=3).steps(200) == 67
    assert CCAFLConfig().scaled() == CCAFLConfig()


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="batch is 0"):
        ScaleConfig(batch=0)
    with pytest.raises(ValueError, match="rule is 'square'"):
        dataclasses.replace(ScaleConfig(), rule="square")
