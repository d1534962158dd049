import inspect

import ccafl_jax


def test_help_describes_every_argument():
    text = inspect.getdoc(ccafl_jax.load)
    names = inspect.signature(ccafl_jax.load).parameters
    assert {"path", "batch", "compute_dtype", "devices"} <= set(names)
    for name in names:
        assert f"\n  {name}: " in text
