"""Features in a Parquet file, a row for each image, that other programs read as well.

    pandas.read_parquet("gallery.parquet")["feature"]       # one array a row

Columns: `name`, `pid`, `camid` (from 0; -1 unknown), `part` (query, gallery, ...), `modality` where
it is known, and `feature`. What the set is stands in the metadata of the schema.
"""

import json
import pathlib
from typing import Any

import numpy as np

KEY = "ccafl_jax features"
FORMAT = 1


def write_table(
    path: pathlib.Path, columns: dict[str, np.ndarray], features: np.ndarray, about: dict[str, Any]
) -> None:
    """Writes a table.

    Args:
      path: of the file.
      columns: by name, one value for each row.
      features: float32[N, D].
      about: JSON values that belong to all rows.

    Raises:
      ImportError: pyarrow is not installed.
      ValueError: names that Parquet cannot hold.
    """
    pyarrow, parquet = _pyarrow()
    values = pyarrow.array(np.ascontiguousarray(features).reshape(-1))
    try:
        made = {name: pyarrow.array(column.tolist()) for name, column in columns.items()}
    except UnicodeEncodeError:
        raise ValueError(f"{path}: names that are not valid Unicode; write a .npz file") from None
    made["feature"] = pyarrow.FixedSizeListArray.from_arrays(values, features.shape[1])
    header = json.dumps({"format": FORMAT, **about})
    table = pyarrow.table(made).replace_schema_metadata({KEY: header})
    parquet.write_table(table, path, write_page_checksum=True)


def read_table(path: pathlib.Path) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Reads what `write_table` wrote: columns, features and what belongs to all rows.

    Raises:
      ImportError: pyarrow is not installed.
      ValueError: a damaged file, another one, or one of another format.
    """
    _, parquet = _pyarrow()
    try:
        table = parquet.read_table(path, page_checksum_verification=True)
        header = json.loads((table.schema.metadata or {}).get(KEY.encode(), b"{}"))
        listed = table["feature"].combine_chunks()
        features = listed.flatten().to_numpy(zero_copy_only=False)
        features = features.reshape(len(listed), -1).astype(np.float32, copy=False)
        columns = {
            name: np.array(table[name].to_pylist())
            for name in table.column_names
            if name != "feature"
        }
    except Exception as error:  # pyarrow raises many kinds; all mean that it cannot be read
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(
            f"{path} is damaged or holds no features ({reason}); expected a file of "
            "scripts/embed.py"
        ) from None
    if header.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no file of features of format {FORMAT}; embed the images anew")
    return columns, features, header


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "features in .parquet need pyarrow: pip install 'ccafl_jax[parquet]', or write .npz"
        ) from error
    return pyarrow, parquet
