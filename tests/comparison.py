"""Comparison with reference values, shared by the parity tests."""

import numpy as np

VALUE_TOLERANCE = {"float64": 1e-9, "float32": 2e-5}
"""Of the cases of ccafl_cases.json, relative to max(1, |value|)."""

GRADIENT_TOLERANCE = 1e-5
"""The cases' gradients are central differences: no better in float64."""


def assert_close(actual, expected, tolerance: float, *, scale: float = 1.0) -> None:
    """Fails unless |actual - expected| <= tolerance * max(scale, |expected|), entry by entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    error = np.abs(actual - expected) / np.maximum(scale, np.abs(expected))
    assert np.all(error <= tolerance), f"error {error.max()} above {tolerance}"


def typed(inputs: dict, dtype: str) -> dict:
    """Numbers of a case as arrays: floats of `dtype`, labels int32, masks bool."""
    result = {}
    for name, value in inputs.items():
        array = np.asarray(value)
        if isinstance(value, list):
            kind = {"f": dtype, "i": np.int32, "b": bool}[array.dtype.kind]
            array = array.astype(kind)
        result[name] = array if isinstance(value, list) else value
    return result
