"""What the pages tell a reader to type, typed."""

import pathlib
import re
import subprocess
import sys

from ccafl_jax.data.layouts import LAYOUTS
from ccafl_jax.data.layouts.manifest import read_manifest
from tests.data.images import encoded, random_pixels

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_the_manifest_of_a_folder_of_crops(tmp_path):
    page = (DOCS / "own_data.md").read_text()
    (snippet,) = (s for s in re.findall(r"```python\n(.*?)```", page, re.S) if "csv.writer" in s)
    for camera in ("door", "yard"):
        for person in ("anna", "ben", "Çağ la"):
            folder = tmp_path / "crops" / camera / person
            folder.mkdir(parents=True)
            for number in range(3 if camera == "door" else 1):
                (folder / f"{number}.JPG").write_bytes(encoded(random_pixels(number), "JPEG"))
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
    collection = read_manifest(tmp_path / "crops")
    counts = {part: len(records) for part, records in collection.parts.items()}
    assert counts == {"train": 8, "query": 1, "gallery": 3}


def test_the_page_of_data_sets_names_them_all():
    page = (DOCS / "data.md").read_text()
    assert [name for name in LAYOUTS if f"`{name}`" not in page] == []
