import dataclasses

import numpy as np
import pytest

from ccafl_jax.deploy import exporting, manifest
from ccafl_jax.deploy.archive import read_archive, write_orbax
from ccafl_jax.deploy.exporting import export_model
from ccafl_jax.deploy.loading import load
from tests.deploy import tiny

KINDS = ["orbax", "safetensors", "stablehlo"]


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_every_format_leaves_and_comes_back(tmp_path, kind):
    bundle, images = tiny.bundle(kind), tiny.pixels(5)
    out = tmp_path / "deep" / "out"
    rows = export_model(bundle, out, images=images)
    assert [row.kind for row in rows] == KINDS
    assert all(row.cosine > 0.999999 and row.dtype == "float32" for row in rows)
    assert sorted(path.name for path in out.iterdir()) == KINDS
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    cameras = tiny.cameras_of(bundle, 5)
    features = [load(out / name, batch=4).embed(images, cameras) for name in KINDS]
    for row, found in zip(rows, features, strict=True):
        np.testing.assert_allclose(found, features[0], atol=1e-6)
        about = manifest.verify(out / row.kind)
        listed = sum(entry["bytes"] for entry in about["files"].values())
        assert row.bytes == listed + (out / row.kind / "manifest.json").stat().st_size


def test_bfloat16_is_the_function_only(tmp_path):
    rows = export_model(
        tiny.bundle("vit"),
        tmp_path / "out",
        images=tiny.pixels(4),
        formats=["orbax", "stablehlo"],
        dtype="bfloat16",
    )
    assert [(row.kind, row.dtype) for row in rows] == [
        ("orbax", "float32"),
        ("stablehlo", "bfloat16"),
    ]
    assert 0.999 < rows[1].cosine < 0.9999999


def with_other_weight(write):
    """A writer that spoils one array on its way."""

    def spoiled(folder, bundle):
        params = dict(bundle.params)
        params["visual/proj"] = params["visual/proj"][::-1].copy()
        write(folder, dataclasses.replace(bundle, params=params))

    return spoiled


def export_orbax(out, **options):
    return export_model(
        tiny.bundle("vit"), out, images=tiny.pixels(3), formats=["orbax"], **options
    )


def test_a_wrong_weight_fails_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "write_orbax", with_other_weight(write_orbax))
    with pytest.raises(ValueError, match=r"orbax export fails the parity gate: cosine .* image"):
        export_orbax(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, error):
    def write(folder, bundle):
        write_orbax(folder, bundle)
        raise error

    monkeypatch.setattr(exporting, "write_orbax", write)
    with pytest.raises(error):
        export_orbax(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_older_export_is_replaced_only_by_one_that_passed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_orbax(out)
    first = (out / "orbax" / "manifest.json").read_text()
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        export_orbax(out)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_orbax", with_other_weight(write_orbax))
        with pytest.raises(ValueError, match="parity gate"):
            export_orbax(out, overwrite=True)
    assert (out / "orbax" / "manifest.json").read_text() == first
    other = dataclasses.replace(tiny.bundle("vit"), source="another")
    export_model(other, out, images=tiny.pixels(3), formats=["safetensors"], overwrite=True)
    assert [path.name for path in out.iterdir()] == ["safetensors"]
    assert read_archive(out / "safetensors").source == "another"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_spares_what_is_no_export(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="holds other things than an export"):
        export_orbax(tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["pickle"]}, r"formats \['pickle'\]: choose from"),
        ({"formats": []}, "choose from"),
        ({"dtype": "int8"}, "dtype 'int8': choose one of"),
        ({"images": []}, "no images for the parity gate"),
    ],
)
def test_options(tmp_path, options, message):
    options = {"images": tiny.pixels(2)} | options
    with pytest.raises(ValueError, match=message):
        export_model(tiny.bundle("vit"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []
