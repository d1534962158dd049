"""Users' own data: a manifest, CSV or Parquet, that lists the images.

`reader` turns it into a collection, by way of `columns` (CSV or Parquet to one form), `checks`
(every bad line, not the first only; with `findings` and `paths`) and `report` (what else to know).
"""

from ccafl_jax.data.layouts.manifest.columns import Problem
from ccafl_jax.data.layouts.manifest.reader import (
    ManifestError,
    camera_names,
    check_manifest,
    find_manifest,
    natural_key,
    pid_names,
    read_manifest,
)

__all__ = [
    "ManifestError",
    "Problem",
    "camera_names",
    "check_manifest",
    "find_manifest",
    "natural_key",
    "pid_names",
    "read_manifest",
]
