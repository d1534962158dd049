"""Columns of a manifest, from a CSV or a Parquet file, in the one form that its checks take.

Every column but `path` repeats few different texts, so it is kept as a code per row and the texts
once: checks look at each text, not at each row, and a million rows stay cheap.
"""

import csv
import dataclasses
import itertools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ccafl_jax.options import nearest_key

REQUIRED = ("path", "pid", "camid", "split")
OPTIONAL = ("tracklet", "frame", "modality")
KNOWN = REQUIRED + OPTIONAL
SPLITS = ("train", "query", "gallery", "distractors")
TRAIN, QUERY, GALLERY, DISTRACTORS = range(len(SPLITS))

_DELIMITERS = (",", ";", "\t")
_LINES_AT_ONCE = 1 << 10  # more are slower: the fields should stay in the processor's cache
_BROKEN = ["\n"]  # stands for a line whose quotes are wrong; no line has such a field
_PARQUET_SUFFIXES = (".parquet", ".pq")
_FOREIGN = {
    b"PK\x03\x04": "is an Excel workbook or a zip archive",
    b"\x1f\x8b": "is compressed",
    b"\xff\xfe": "is UTF-16 text",
    b"\xfe\xff": "is UTF-16 text",
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something in a manifest that must be mended.

    Attributes:
      line: number of the line in the file, the header being 1; of a Parquet file the number of the
        row, the first being 1. 0 where the file as a whole is meant.
      column: its name, or "".
      message: what is wrong and what to do, in one line that any terminal can show.
      unit: "line", or "row" of a Parquet file.
    """

    line: int
    column: str
    message: str
    unit: str = "line"

    def __post_init__(self):
        object.__setattr__(self, "message", printable(self.message))

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.message}" if self.line else self.message


class Column:
    """A column of texts that repeat: row i holds `values[code[i]]`.

    Attributes:
      code: int64[n].
      values: the different texts, without blanks around them.
    """

    def __init__(self, code: np.ndarray, values: Sequence[str]):
        """Args:
        code: int64[n].
        values: texts; those that are equal but for blanks around them become one.
        """
        numbers: dict[str, int] = {}
        number = [numbers.setdefault(text.strip(), len(numbers)) for text in values]
        self.code = np.asarray(number, np.int64)[code]
        self.values = list(numbers)

    def equal(self, text: str) -> np.ndarray:
        """bool[n], true where the text stands."""
        return self.lookup(np.array([value == text for value in self.values], bool))

    def lookup(self, of_value: np.ndarray) -> np.ndarray:
        """What stands for the text of each row, given what stands for each text."""
        return of_value[self.code]


@dataclasses.dataclass
class Table:
    """A manifest as it was read.

    Attributes:
      file: where it lies.
      unit: "line" or "row", see `Problem`.
      line: int64[n], numbers of the rows in the file.
      path: n paths as written, without blanks around them.
      columns: the other columns; optional ones only if anything stands in them.
      problems: found while reading; rows concerned are not among the n.
      warnings: what a user should know.
    """

    file: pathlib.Path
    unit: str = "line"
    line: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    path: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, Column] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.path)


def read_table(file: pathlib.Path) -> Table:
    """Reads a manifest, CSV (`,`, `;` or tab between the fields) or Parquet.

    Raises:
      OSError: the file cannot be read.
      ImportError: a Parquet file, and pyarrow is not installed.
    """
    with open(file, "rb") as opened:
        magic = opened.read(4)
    for start, what in _FOREIGN.items():
        if magic.startswith(start):
            message = f"the file {what}; save it as CSV (UTF-8)"
            return Table(file, problems=[Problem(0, "", message)])
    if magic == b"PAR1" or file.suffix.lower() in _PARQUET_SUFFIXES:
        return _read_parquet(file)
    return _read_csv(file)


def printable(text: str) -> str:
    """The text with escapes for what is no printable character, such as bytes that are no UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _read_csv(file: pathlib.Path) -> Table:
    table = Table(file)
    encoder = _Encoder()
    blank = 0
    # A byte that is no UTF-8 survives: file names may hold such bytes.
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:
        delimiter, names = _split_header(text.readline())
        place = _place_columns(table, names, line=1)
        if table.problems:
            return table
        line, first = [np.empty(0, np.int64)], 2
        encoder.add({name: () for name in place})
        while chunk := list(itertools.islice(text, _LINES_AT_ONCE)):
            rows, kept, empty = _whole_rows(chunk, first, names, delimiter, table.problems)
            blank += empty
            line.append(kept)
            fields = list(zip(*rows, strict=True)) or [()] * len(names)
            encoder.add({name: fields[column] for name, column in place.items()})
            first += len(chunk)
    if blank:
        table.warnings.append(f"{blank} empty lines left out")
    table.line = np.concatenate(line)
    table.path, table.columns = encoder.finish()
    return table


def _whole_rows(
    lines: list[str], first: int, names: list[str], delimiter: str, problems: list[Problem]
) -> tuple[list[list[str]], np.ndarray, int]:
    """The fields of the lines that have as many as the header, their numbers, and empty lines."""
    rows = _parse(lines, delimiter, first, problems)
    numbers = np.arange(first, first + len(lines))
    # Most files are in order: what follows is for the others.
    if set(map(len, rows)) == {len(names)} and all(map(any, rows)):
        return rows, numbers, 0
    whole = np.zeros(len(rows), bool)
    empty = 0
    for place, row in enumerate(rows):
        if row == _BROKEN:
            continue
        if not any(row):
            empty += 1
        elif len(row) != len(names):
            message = _field_count(row, names, delimiter)
            problems.append(Problem(first + place, "", message))
        else:
            whole[place] = True
    return list(itertools.compress(rows, whole)), numbers[whole], empty


class _Encoder:
    """Collects the texts of columns as codes."""

    def __init__(self):
        self._paths: list[str] = []
        self._numbers: dict[str, dict[str, int]] = {}
        self._codes: dict[str, list[np.ndarray]] = {}

    def add(self, chunk: dict[str, Sequence[str]]) -> None:
        for name, texts in chunk.items():
            if name == "path":
                self._paths += [text.strip() for text in texts]
                continue
            numbers = self._numbers.setdefault(name, {})
            for text in dict.fromkeys(texts):
                numbers.setdefault(text, len(numbers))
            code = np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts))
            self._codes.setdefault(name, []).append(code)

    def finish(self) -> tuple[list[str], dict[str, Column]]:
        columns = {
            name: Column(np.concatenate(self._codes[name]), list(numbers))
            for name, numbers in self._numbers.items()
        }
        return self._paths, _without_empty(columns)


def _without_empty(columns: dict[str, Column]) -> dict[str, Column]:
    """Without optional columns in which nothing stands."""
    return {
        name: column
        for name, column in columns.items()
        if name in REQUIRED or column.values not in ([], [""])
    }


def _split_header(header: str) -> tuple[str, list[str]]:
    """The delimiter under which most column names are known, and the names."""
    found = {delimiter: _header_names(header, delimiter) for delimiter in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda d: len(set(found[d]) & set(KNOWN)))
    return delimiter, found[delimiter]


def _header_names(header: str, delimiter: str) -> list[str]:
    try:
        fields = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        fields = header.split(delimiter)
    return [field.strip().lower() for field in fields]


def _place_columns(table: Table, names: list[str], *, line: int) -> dict[str, int]:
    """Where the known columns stand; notes what is missing, doubled or unknown."""
    place = {name: names.index(name) for name in KNOWN if name in names}
    foreign = list(dict.fromkeys(name for name in names if name not in KNOWN))
    shown = textwrap.shorten(", ".join(name or "(without a name)" for name in names), 200)

    def note(column: str, message: str) -> None:
        table.problems.append(Problem(line, column, message, table.unit))

    if not place:
        wanted = ", ".join(REQUIRED)
        note("", f"the columns {wanted} must be named first; found are: {shown or 'none'}")
        return place
    for name in REQUIRED:
        if name not in place:
            near = nearest_key(name, [other for other in foreign if other])
            hint = f"; is it {near!r}? then rename that" if near else ""
            note(name, f"there is no column {name}{hint}; the columns found are: {shown}")
    for name in place:
        if names.count(name) > 1:
            note(name, f"there are {names.count(name)} columns {name}; keep one")
    if foreign and not table.problems:
        table.warnings.append(printable("columns left out: " + _with_hints(foreign, place)))
    return place


def _with_hints(foreign: list[str], place: dict[str, int]) -> str:
    absent = [name for name in OPTIONAL if name not in place]
    shown = []
    for name in foreign:
        near = nearest_key(name, absent) if name else None
        shown.append((name or "(without a name)") + (f" (did you mean {near}?)" if near else ""))
    return ", ".join(shown)


def _parse(
    lines: list[str], delimiter: str, first: int, problems: list[Problem]
) -> list[list[str]]:
    """The fields of each line; none goes over a line's end, so that one error spoils one line."""
    style = {"delimiter": delimiter, "skipinitialspace": True, "strict": True}
    try:
        rows = list(csv.reader(lines, **style))
        if len(rows) == len(lines):
            return rows
    except csv.Error:
        pass
    rows = []
    for number, line in enumerate(lines, first):
        try:
            rows.append(next(csv.reader([line], **style)))
        except csv.Error as error:
            message = (
                f"the fields cannot be told apart ({error}); a quote that opens a field must "
                "close it on the same line, and one inside is written twice"
            )
            problems.append(Problem(number, "", message))
            rows.append(_BROKEN)
    return rows


def _field_count(row: list[str], names: list[str], delimiter: str) -> str:
    hint = " (put a field that holds one in quotes)" if len(row) > len(names) else ""
    shown = {"\t": "tabs"}.get(delimiter, f"{delimiter!r}")
    return f"{len(row)} fields between {shown}, the header has {len(names)}{hint}"


def _read_parquet(file: pathlib.Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "Parquet manifests need pyarrow: pip install 'ccafl_jax[parquet]'"
        ) from error
    table = Table(file, unit="row")
    try:
        with parquet.ParquetFile(file) as opened:
            spelled = opened.schema_arrow.names
            place = _place_columns(table, [name.strip().lower() for name in spelled], line=0)
            if not table.problems:
                # By number: a name might match a nested column as well.
                data = opened.read(columns=[spelled[column] for column in place.values()])
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"the file cannot be read as Parquet ({reason})"
        return Table(file, "row", problems=[Problem(0, "", message)])
    if table.problems:
        return table
    texts = {
        name: _arrow_texts(pyarrow.types, table, name, data.column(spelled[column]))
        for name, column in place.items()
    }
    if not table.problems:
        table.line = np.arange(1, data.num_rows + 1)
        table.path = [text.strip() for text in texts.pop("path")]
        table.columns = _without_empty(texts)
    return table


def _arrow_texts(types: Any, table: Table, name: str, column: Any) -> Any:
    """A `Column`, or for `path` a list; notes a type that is neither text nor a number."""
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind)
    if not (text or types.is_null(kind) or (number and name != "path")):
        expected = "text" if name == "path" else "integers or text"
        message = f"column {name} is of type {column.type}, expected {expected}"
        table.problems.append(Problem(0, name, message, table.unit))
        return []
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        table.problems.append(Problem(0, name, f"column {name} is no UTF-8 text", table.unit))
        return []
    if name == "path":
        return [value or "" for value in values]
    numbers: dict[Any, int] = {}
    # NaN equals nothing, itself included: each would be a text of its own.
    code = (numbers.setdefault(v if v == v else None, len(numbers)) for v in values)
    return Column(np.fromiter(code, np.int64, len(values)), [_as_text(value) for value in numbers])


def _as_text(value: Any) -> str:
    """As CSV would hold it; None is empty, 3.0 is 3."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
