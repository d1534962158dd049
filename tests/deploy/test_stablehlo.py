import datetime
import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from jax import export

from ccafl_jax.deploy import manifest, standalone
from ccafl_jax.deploy.forward import all_arrays, compiled_embed
from ccafl_jax.deploy.stablehlo import RELEASED, compatibility, write_stablehlo
from tests.deploy import tiny

STRANGER = """
import sys
for name in ("ccafl_jax", "flax", "orbax", "optax"):
    sys.modules[name] = None
try:
    import ccafl_jax
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported")
sys.path.insert(0, "exported")
import embed
import numpy as np
run = embed.load("exported")
images = np.load("images.npy")
cameras = np.load("cameras.npy") if sys.argv[1:] else None
for count in (1, 7, 64):
    chosen = None if cameras is None else cameras[:count]
    np.save(f"features{count}.npy", run(images[:count], chosen))
"""


def reference(bundle, images, cameras):
    inputs = (images,) if cameras is None else (images, cameras)
    return compiled_embed(bundle.model, bundle.preprocess, "float32")(all_arrays(bundle), *inputs)


def place(tmp_path, kind):
    """An export, 64 images and their cameras, in a folder."""
    bundle = tiny.bundle(kind)
    (tmp_path / "exported").mkdir()
    write_stablehlo(tmp_path / "exported", bundle)
    images, cameras = tiny.pixels(64), tiny.cameras_of(bundle, 64)
    np.save(tmp_path / "images.npy", images)
    if cameras is not None:
        np.save(tmp_path / "cameras.npy", cameras)
    return bundle, images, cameras


def run(tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_it_runs_where_the_package_cannot_be_imported(tmp_path, kind):
    bundle, images, cameras = place(tmp_path, kind)
    run(tmp_path, "-c", STRANGER, *(["cameras"] if cameras is not None else []))
    for count in (1, 7, 64):
        found = np.load(tmp_path / f"features{count}.npy")
        assert found.shape == (count, bundle.model.features) and found.dtype == np.float32
        chosen = None if cameras is None else cameras[:count]
        expected = reference(bundle, images[:count], chosen)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.ci
def test_its_command(tmp_path):
    bundle, images, cameras = place(tmp_path, "vit")
    arguments = ["images.npy", "out.npy", "--cameras", "cameras.npy", "--batch", "24"]
    run(tmp_path, "exported/embed.py", *arguments)
    expected = reference(bundle, images, cameras)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    write_stablehlo(folder, tiny.bundle("vit"))
    return folder


def test_the_module(folder):
    bundle = tiny.bundle("vit")
    function = (folder / "embed.stablehlo").read_bytes()
    exported = export.deserialize(bytearray(function))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    arrays = all_arrays(bundle)
    assert len(exported.in_avals) == len(arrays) + 2  # the weights are arguments
    *_, images, cameras = exported.in_avals
    assert str(images) == "uint8[b,32,16,3]" and str(cameras) == "int32[b]"
    assert [str(x) for x in exported.out_avals] == ["float32[b,24]"]
    with np.load(folder / "weights.npz") as weights:
        assert weights.keys() == arrays.keys()
        for path in arrays:
            np.testing.assert_array_equal(weights[path], arrays[path])


def test_products_are_at_highest(folder):
    text = export.deserialize(bytearray((folder / "embed.stablehlo").read_bytes())).mlir_module()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)[^\n]*", text)
    assert len(products) >= 10
    assert all("HIGHEST" in line for line in products)


def test_bfloat16(tmp_path):
    bundle = tiny.bundle("vit")
    write_stablehlo(tmp_path, bundle, compute_dtype="bfloat16")
    about = manifest.verify(tmp_path)
    assert about["dtype"] == "bfloat16"
    images, cameras = tiny.pixels(3), tiny.cameras_of(bundle, 3)
    found = np.asarray(standalone.load(tmp_path)(images, cameras))
    assert found.dtype == np.float32
    difference = np.abs(found - reference(bundle, images, cameras)).max()
    assert 1e-5 < difference < 5e-2


def test_the_manifest_states_the_window(folder):
    about = manifest.verify(folder)
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["calling_convention_version"] >= 9
    assert about["compatibility"] == compatibility()
    assert about.keys() >= {"inputs", "features", "recipe", "versions", "created", "model"}


def test_the_window_counts_from_the_release():
    known = compatibility(jaxlib="0.10.2")
    assert known["usable_until"] == "2026-12-16" and known["usable_from"] == "2026-05-27"
    assert known["counted_from"] == "the release of jaxlib 0.10.2, 2026-06-17"
    other = compatibility(jaxlib="0.12.0.1")  # newer than all that are known: nothing in excess
    assert other["usable_until"] == "2027-04-19"
    assert "0.12.0, 2026-10-19, the newest known that is not after" in other["counted_from"]
    assert all(datetime.date.fromisoformat(day) for day in RELEASED.values())


@pytest.mark.parametrize(
    ("images", "cameras", "message"),
    [
        (np.zeros((2, 32, 16, 3), np.float32), [0, 0], "images are float32"),
        (np.zeros((2, 16, 32, 3), np.uint8), [0, 0], r"uint8\[2, 16, 32, 3\], expected"),
        (np.zeros((2, 32, 16, 3), np.uint8), None, "needs cameras"),
        (np.zeros((2, 32, 16, 3), np.uint8), [0, 3], "one for each image, integers 0 to 2"),
        (np.zeros((2, 32, 16, 3), np.uint8), [0], "one for each image"),
        (np.zeros((2, 32, 16, 3), np.uint8), [0.0, 1.0], "integers 0 to 2"),
        (
            [np.zeros((32, 16, 3), np.uint8), np.zeros((8, 8), np.uint8)],
            [0, 0],
            r"image 1 is uint8",
        ),
        ("a.png", [0], "images are <U5"),
    ],
)
def test_inputs_are_checked(folder, images, cameras, message):
    with pytest.raises(ValueError, match=message):
        standalone.load(folder)(images, cameras)


def test_lists_of_images_and_no_images(folder):
    embed = standalone.load(folder)
    images = tiny.pixels(3)
    np.testing.assert_array_equal(embed(list(images), [0, 1, 2]), embed(images, [0, 1, 2]))
    for nothing in ([], images[:0]):
        found = embed(nothing, [])
        assert found.shape == (0, 24) and found.dtype == np.float32


@pytest.fixture
def command(folder, tmp_path, monkeypatch, capsys):
    """Runs the command of an export in this process; returns its status and what it said."""
    load = standalone.load
    monkeypatch.setattr(standalone, "load", lambda: load(folder))
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", tiny.pixels(3))
    np.save("cameras.npy", [0, 1, 2])

    def run_it(*arguments):
        monkeypatch.setattr(sys, "argv", ["embed.py", *arguments])
        status = 0
        try:
            standalone.main()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    return run_it


def test_the_command_with_and_without_images(command, folder):
    assert command("images.npy", "out.npy", "--cameras", "cameras.npy", "--batch", "2") == (0, "")
    expected = standalone.load()(tiny.pixels(3), [0, 1, 2])
    np.testing.assert_allclose(np.load("out.npy"), expected, rtol=0, atol=1e-6)
    np.save("none.npy", tiny.pixels(1)[:0])
    np.save("nocams.npy", np.zeros(0))
    assert command("none.npy", "out.npy", "--cameras", "nocams.npy") == (0, "")
    found = np.load("out.npy")
    assert found.shape == (0, 24) and found.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.npy", "out.npy", "--cameras", "cameras.npy"], "gone.npy: no such file"),
        (["text.npy", "out.npy", "--cameras", "cameras.npy"], "text.npy is no whole .npy file"),
        (["empty.npy", "out.npy", "--cameras", "cameras.npy"], "empty.npy is no whole .npy file"),
        (["cut.npy", "out.npy", "--cameras", "cameras.npy"], "cut.npy is no whole .npy file"),
        (["zip.npy", "out.npy", "--cameras", "cameras.npy"], "zip.npy is no whole .npy file"),
        (["images.npy", "out.npy"], "this model needs cameras (--cameras), 0 to 2"),
        (["images.npy", "out.npy", "--cameras", "gone.npy"], "gone.npy: no such file"),
        (["images.npy", "out.npy", "--cameras", "few.npy"], "--cameras holds [2] for [3, 32, 16"),
        (["images.npy", "none/out.npy", "--cameras", "cameras.npy"], "its folder does not exist"),
        (["images.npy", "out.npy", "--batch", "0"], "--batch is 0; choose 1 or more"),
        (["cameras.npy", "out.npy", "--cameras", "cameras.npy"], "images are int64[3], expected"),
    ],
)
def test_errors_of_the_command_are_one_line(command, tmp_path, arguments, message):
    (tmp_path / "text.npy").write_text("a,b")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04")
    whole = (tmp_path / "images.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    np.save("few.npy", [0, 1])
    status, said = command(*arguments)
    assert status == 2 and said.startswith("error: ") and len(said.splitlines()) == 1
    assert message in said
    assert not (tmp_path / "out.npy").exists()


def copy(folder, tmp_path, function):
    """Copies an export with another function in it."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "embed.stablehlo").write_bytes(function)


def test_a_changed_file_is_found(folder, tmp_path):
    copy(folder, tmp_path, b"other")
    with pytest.raises(ValueError, match=r"embed\.stablehlo is damaged or was changed"):
        standalone.load(tmp_path)


def test_a_module_that_this_jax_cannot_read(folder, tmp_path):
    function = b"of another age" * 50
    copy(folder, tmp_path, function)
    about = json.loads((tmp_path / "manifest.json").read_text())
    about["files"]["embed.stablehlo"]["sha256"] = hashlib.sha256(function).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"cannot read .* made by jax .* export again") as error:
        standalone.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_manifest_without_the_model_and_a_missing_file(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "weights.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.npz is missing: copy it again"):
        standalone.load(tmp_path)
    about = json.loads((tmp_path / "manifest.json").read_text()) | {"files": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="does not list the model: export again"):
        standalone.load(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is no manifest of an export"):
            standalone.load(tmp_path)
