"""Access to the reference vectors in tests/golden."""

import functools
import json
import pathlib

import numpy as np

ROOT = pathlib.Path(__file__).parent / "golden"


@functools.cache
def golden(name: str, folder: str = "ccafl") -> dict[str, np.ndarray]:
    """Arrays of one reference file, e.g. `golden("01_supcon_s0")`."""
    with np.load(ROOT / folder / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def cases() -> dict:
    """The analytic and random float64 cases, by group."""
    return json.loads((ROOT / "ccafl_cases.json").read_text())


def case_group(group: str) -> list[dict]:
    """The cases of one group."""
    return cases()[group]
