import dataclasses
import pathlib

import numpy as np
import pytest

from ccafl_jax.deploy import exporting, manifest
from ccafl_jax.deploy.archive import read_archive, write_orbax
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.exporting import export_model
from ccafl_jax.deploy.loading import load, load_bundle
from ccafl_jax.deploy.stablehlo import write_stablehlo
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


def test_exports_carry_the_filter_and_resize_with_it(tmp_path):
    bundle = tiny.bundle("resnet")
    preprocess = dataclasses.replace(bundle.preprocess, filter="lanczos")
    bundle = dataclasses.replace(bundle, preprocess=preprocess)
    pictures = list(np.random.default_rng(2).integers(0, 256, (3, 50, 30, 3), dtype=np.uint8))
    export_model(bundle, tmp_path / "out", images=pictures)
    of_the_model = Embedder(bundle, batch=4).embed(pictures)
    other = Embedder(tiny.bundle("resnet"), batch=4).embed(pictures)
    for name in KINDS:
        assert manifest.read(tmp_path / "out" / name)["preprocess"]["resample"] == "lanczos"
        loaded = load(tmp_path / "out" / name, batch=4)
        assert loaded.preprocess == preprocess
        found = loaded.embed(pictures)
        np.testing.assert_allclose(found, of_the_model, atol=1e-6)
        assert np.abs(found - other).max() > 1e-3


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


def with_other_weight(write, path="visual/proj", row=slice(None)):
    """A writer that spoils one array, or some rows of it, on its way."""

    def spoiled(folder, bundle, **options):
        params = dict(bundle.params)
        params[path] = params[path].copy()
        params[path][row] = -params[path][row] - 9
        write(folder, dataclasses.replace(bundle, params=params), **options)

    return spoiled


def export_orbax(out, **options):
    return export_model(
        tiny.bundle("vit"), out, images=tiny.pixels(3), formats=["orbax"], **options
    )


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("vit", "visual/proj"),
        ("resnet", "visual/attnpool/v_proj/kernel"),  # the feature does not depend on it
    ],
)
def test_a_wrong_array_in_an_archive_fails_and_leaves_nothing(tmp_path, monkeypatch, kind, path):
    monkeypatch.setattr(exporting, "write_orbax", with_other_weight(write_orbax, path))
    with pytest.raises(ValueError, match=f"the orbax archive does not hold {path}"):
        export_model(tiny.bundle(kind), tmp_path / "out", images=tiny.pixels(3), formats=["orbax"])
    assert list(tmp_path.iterdir()) == []


def test_a_function_with_one_wrong_camera_fails_whatever_the_images(tmp_path, monkeypatch):
    spoiled = with_other_weight(write_stablehlo, "camera_embedding", row=2)
    monkeypatch.setattr(exporting, "write_stablehlo", spoiled)
    with pytest.raises(ValueError, match=r"fails the parity gate: cosine .* on image 2 is below"):
        export_model(
            tiny.bundle("vit"), tmp_path / "out", images=tiny.pixels(1), formats=["stablehlo"]
        )
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
    with pytest.raises(FileExistsError, match=r"holds \['orbax'\] already; .* pass --overwrite"):
        export_orbax(out)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_orbax", with_other_weight(write_orbax))
        with pytest.raises(ValueError, match="does not hold"):
            export_orbax(out, overwrite=True)
    assert (out / "orbax" / "manifest.json").read_text() == first
    other = dataclasses.replace(tiny.bundle("vit"), source="another")
    export_model(other, out, images=tiny.pixels(3), formats=["orbax"], overwrite=True)
    assert read_archive(out / "orbax").source == "another"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_functions_are_renewed_beside_the_archive_they_are_made_from(tmp_path):
    out = tmp_path / "out"
    options = {"images": tiny.pixels(3), "overwrite": True}
    export_orbax(out)
    for _ in range(2):
        export_model(load_bundle(out), out, formats=["stablehlo"], **options)
    assert sorted(path.name for path in out.iterdir()) == ["orbax", "stablehlo"]
    params = {k: v + 1 if k == "visual/proj" else v for k, v in tiny.bundle("vit").params.items()}
    other = dataclasses.replace(tiny.bundle("vit"), params=params)
    with pytest.raises(FileExistsError, match=r"holds \['orbax'\] of another model"):
        export_model(other, out, formats=["stablehlo"], **options)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_move_puts_everything_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_orbax(out)
    first = (out / "orbax" / "manifest.json").read_text()
    rename = pathlib.Path.rename

    def failing(path, target):
        if path.name == "stablehlo":
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    other = dataclasses.replace(tiny.bundle("vit"), source="another")
    with pytest.raises(OSError, match="disk full"):
        export_model(
            other,
            out,
            images=tiny.pixels(3),
            formats=["orbax", "stablehlo"],
            overwrite=True,
        )
    assert (out / "orbax" / "manifest.json").read_text() == first
    assert [path.name for path in out.iterdir()] == ["orbax"]
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
        ({"formats": ["pickle"]}, "formats pickle: choose from orbax"),
        ({"formats": []}, "choose from"),
        ({"dtype": "int8"}, "dtype 'int8': choose one of"),
        ({"images": []}, "no images for the parity gate"),
        ({"dtype": "bfloat16", "formats": ["orbax"]}, "is for stablehlo, which is not asked for"),
    ],
)
def test_options(tmp_path, options, message):
    options = {"images": tiny.pixels(2)} | options
    with pytest.raises(ValueError, match=message):
        export_model(tiny.bundle("vit"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_overwrite_spares_files_inside_an_export(tmp_path):
    export_orbax(tmp_path / "out")
    (tmp_path / "out" / "orbax" / "notes.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"holds \['notes.txt'\], which no export wrote"):
        export_orbax(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "orbax" / "notes.txt").read_text() == "dear"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    export_orbax(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["orbax"]


def test_images_that_look_alike_are_named(tmp_path, caplog):
    images = np.repeat(tiny.pixels(1), 3, axis=0)
    export_model(tiny.bundle("resnet"), tmp_path / "out", images=images, formats=["orbax"])
    assert "look alike to the model" in caplog.text
