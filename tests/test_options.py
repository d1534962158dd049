"""Frozen dataclasses from mappings."""

import dataclasses
import json

import pytest

from ccafl_jax.options import flatten, from_mapping


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "a"
    count: int = 3
    on: bool = True
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = Inner()

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count must not be negative")


def test_nested_values_and_conversions():
    made = from_mapping(Outer, {"count": 4, "pair": [1, 2], "inner": {"rate": 2, "sizes": [5]}})
    assert made == Outer(count=4, pair=(1.0, 2.0), inner=Inner(rate=2.0, sizes=(5,)))
    assert isinstance(made.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "unknown option config.cuont: did you mean config.count?"),
        ({"inner": {"rat": 1}}, "unknown option config.inner.rat: did you mean config.inner.rate?"),
        ({"zzz": 1}, "known options are count, inner, name, on, pair"),
        ({"count": 1.5}, "config.count must be of type int, found 1.5"),
        ({"count": True}, "config.count must be of type int"),
        ({"on": 1}, "config.on must be of type bool"),
        ({"name": 3}, "config.name must be of type str"),
        ({"pair": [1]}, "config.pair must hold 2 values, found 1"),
        ({"pair": "ab"}, "config.pair must be a sequence"),
        ({"inner": 3}, "config.inner must be a group of options"),
        ({"count": -1}, "config: count must not be negative"),
    ],
)
def test_bad_values_name_the_option(values, message):
    with pytest.raises(ValueError) as error:
        from_mapping(Outer, values)
    assert message in str(error.value)


def test_flat_options_are_the_same_before_and_after_json():
    made = Outer(count=4, inner=Inner(sizes=(5, 6)))
    flat = {"name": "a", "count": 4, "on": True, "pair": (0.0, 1.0)}
    assert flatten(made) == flat | {"inner.rate": 0.1, "inner.sizes": (5, 6)}
    assert flatten(json.loads(json.dumps(dataclasses.asdict(made)))) == flatten(made)
    assert [*flatten(made)] == ["name", "count", "on", "pair", "inner.rate", "inner.sizes"]
