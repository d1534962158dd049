import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.evaluation import bootstrap as module
from ccafl_jax.evaluation.bootstrap import bootstrap, bootstrap_difference


def problem(seed, identities=12, per=4):
    """Values that agree within an identity, some queries without a match."""
    rng = np.random.default_rng(seed)
    pid = np.repeat(rng.permutation(100)[:identities], rng.integers(1, per + 1, identities))
    rng.shuffle(pid)
    level = rng.random(100)
    values = np.clip(level[pid] + 0.1 * rng.normal(size=len(pid)), 0, 1)
    return values, rng.random(len(pid)) < 0.8, pid


def oracle(values, valid, pid, *, samples, level, seed, no_match):
    """The same draws, one query after the other."""
    counted = [q for q in range(len(pid)) if valid[q] or no_match == "zero"]
    people = sorted({int(pid[q]) for q in counted})
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(samples):
        drawn = []
        for i in rng.integers(0, len(people), len(people)):
            drawn += [values[q] if valid[q] else 0.0 for q in counted if pid[q] == people[i]]
        means.append(sum(drawn) / len(drawn))
    tail = 100 * (1 - level) / 2
    error = float(np.sqrt(np.sum((np.array(means) - np.mean(means)) ** 2) / (samples - 1)))
    return (*np.percentile(means, [tail, 100 - tail]), error, len(people), len(counted))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    level=st.sampled_from([0.5, 0.9]),
    samples=st.sampled_from([20, 41]),
    no_match=st.sampled_from(["skip", "zero"]),
)
def test_is_a_plain_loop_over_the_same_draws(seed, level, samples, no_match):
    values, valid, pid = problem(seed)
    valid[[0, np.flatnonzero(pid != pid[0])[0]]] = True  # two identities count
    options = {"samples": samples, "level": level, "seed": seed, "no_match": no_match}
    found = bootstrap(values, valid, pid, **options)
    low, high, error, identities, queries = oracle(values, valid, pid, **options)
    assert (found.low, found.high, found.error) == pytest.approx((low, high, error), abs=1e-12)
    assert (found.identities, found.queries, found.samples) == (identities, queries, samples)
    mean = values[valid].mean() if no_match == "skip" else np.where(valid, values, 0).mean()
    assert found.value == pytest.approx(mean, abs=1e-12) and found.level == level


def test_blocks_do_not_change_the_draws(monkeypatch):
    values, valid, pid = problem(3, identities=30)
    whole = bootstrap(values, valid, pid, samples=200)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 7 * len(np.unique(pid)))
    blocked = bootstrap(values, valid, pid, samples=200)
    assert blocked.low == pytest.approx(whole.low, abs=1e-14)
    assert blocked.error == pytest.approx(whole.error, abs=1e-14)


def test_options_change_the_result_and_the_seed_repeats_it():
    values, valid, pid = problem(1)
    base = bootstrap(values, valid, pid)
    assert bootstrap(values, valid, pid) == base
    assert bootstrap(values, valid, pid, seed=1).low != base.low
    narrow = bootstrap(values, valid, pid, level=0.5)
    assert base.low < narrow.low <= narrow.value <= narrow.high < base.high
    assert bootstrap(values, valid, pid, samples=400).low != base.low
    assert bootstrap(values, valid, pid, no_match="zero").value < base.value


def test_a_mapping_gives_every_value_its_own_interval_from_shared_draws():
    values, valid, pid = problem(2)
    hit = values > 0.5
    found = bootstrap({"mAP": values, "rank1": hit}, valid, pid)
    assert list(found) == ["mAP", "rank1"]
    for name, array in (("mAP", values), ("rank1", hit)):
        alone = bootstrap(array, valid, pid)
        for field in ("value", "low", "high", "error"):
            assert getattr(found[name], field) == pytest.approx(getattr(alone, field), abs=1e-12)
    assert json.loads(json.dumps(found["rank1"].to_json())) == found["rank1"].to_json()


def test_queries_of_an_identity_come_together():
    # Two identities of two equal queries each: a sample holds one of them twice, or both.
    values, pid = np.array([1.0, 1.0, 0.0, 0.0]), np.array([7, 7, 9, 9])
    found = bootstrap(values, np.ones(4, bool), pid, samples=4000, level=0.4)
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
    wide = bootstrap(values, np.ones(4, bool), pid, samples=4000, level=0.6)
    assert (wide.low, wide.high) == (0.0, 1.0)
    # Standard deviation of a half of a binomial(2, 1/2): sqrt(1/8); four free queries give 1/4.
    assert found.error == pytest.approx(np.sqrt(1 / 8), rel=0.05)


def test_equal_values_have_an_interval_of_no_width():
    found = bootstrap(np.full(6, 0.25), np.ones(6, bool), np.arange(6))
    assert (found.low, found.high, found.error) == (0.25, 0.25, 0.0)


def test_covers_the_true_mean_as_often_as_it_says():
    """Identities drawn from a population; draws of single queries would cover far less."""
    rng = np.random.default_rng(0)
    people, images, repeats = 40, 5, 400
    pid = np.repeat(np.arange(people), images)
    valid = np.ones(len(pid), bool)
    covered = alone = 0
    for seed in range(repeats):
        ease = rng.random(people)
        values = 0.8 * ease[pid] + 0.2 * rng.random(len(pid))  # mean 0.5
        found = bootstrap(values, valid, pid, samples=200, level=0.9, seed=seed)
        covered += found.low <= 0.5 <= found.high
        single = bootstrap(values, valid, np.arange(len(pid)), samples=200, level=0.9, seed=seed)
        alone += single.low <= 0.5 <= single.high
    assert 0.84 < covered / repeats < 0.94
    assert alone / repeats < 0.75


def test_difference_is_paired():
    values, valid, pid = problem(4, identities=40)
    rng = np.random.default_rng(0)
    better = values + 0.02 + 0.01 * rng.normal(size=len(values))
    found = bootstrap_difference(better, values, valid, pid)
    assert found.value == pytest.approx(np.mean((better - values)[valid]), abs=1e-12)
    assert 0 < found.low < found.value < found.high
    one, two = bootstrap(better, valid, pid), bootstrap(values, valid, pid)
    assert one.low < two.high  # the single intervals overlap, the paired one tells them apart
    swapped = bootstrap_difference(values, better, valid, pid)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    same = bootstrap_difference(values > 0.5, values > 0.5, valid, pid)
    assert (same.low, same.high) == (0.0, 0.0)
    for option in ({"seed": 1}, {"samples": 400}, {"level": 0.8}, {"no_match": "zero"}):
        assert bootstrap_difference(better, values, valid, pid, **option).low != found.low


def test_values_of_queries_that_do_not_count_may_be_anything():
    values, valid, pid = problem(5)
    spoiled = np.where(valid, values, np.nan)
    for no_match in ("skip", "zero"):
        clean = bootstrap(values, valid, pid, no_match=no_match)
        assert bootstrap(spoiled, valid, pid, no_match=no_match) == clean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1.0}, "level is 1.0, must lie between 0 and 1"),
        ({"level": 0.0}, "level is 0.0, must lie between 0 and 1"),
        ({"samples": 100.5}, "samples is 100.5, must be a whole number"),
        ({"query_pid": np.full(6, np.nan)}, "query_pid: 6 of 6 labels are no whole numbers"),
        ({"samples": 39}, "samples is 39, too few for level 0.95: take 40 or more"),
        ({"no_match": "none"}, "no_match is 'none', must be one of skip, zero"),
        ({"values": np.zeros(5)}, "values have shape [5], expected [6] as valid"),
        ({"values": {}}, "values hold no array"),
        ({"values": {"mAP": np.full(6, np.nan)}}, "values 'mAP' hold 6 NaN or infinite"),
        ({"valid": np.zeros(6, bool)}, "no query to draw: 6 queries, of which 0 have a match"),
        ({"valid": np.zeros(6)}, "expected bool[queries] and [queries]"),
        ({"query_pid": np.zeros(5, int)}, "expected bool[queries] and [queries]"),
        ({"query_pid": np.full(6, 3)}, "all 6 counted queries show identity 3"),
        ({"valid": np.arange(6) == 2}, "all 1 counted queries show identity 2"),
    ],
)
def test_wrong_input_is_named_in_one_line(change, message):
    arguments = {"values": np.zeros(6), "valid": np.ones(6, bool), "query_pid": np.arange(6)}
    with pytest.raises(ValueError) as error:
        bootstrap(**(arguments | change))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_difference_needs_the_same_queries():
    with pytest.raises(ValueError, match="expected the same queries for both"):
        bootstrap_difference(np.zeros(6), np.zeros(5), np.ones(6, bool), np.arange(6))
