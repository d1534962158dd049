"""Conversion as a user types it, and its one part that needs torch."""

import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ccafl_jax.deploy.convert import convert
from ccafl_jax.deploy.evaluate import evaluate_bundle
from ccafl_jax.deploy.run_folder import read_run
from ccafl_jax.deploy.torch_checkpoint import Checkpoint
from ccafl_jax.models.tensor_files import TensorFiles, write_tensors
from tests.deploy.published import VIT_OPTIONS, ccafl, clipreid_vit

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "convert_weights.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("convert_weights", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))


class Tensor:
    """What the script asks of a torch tensor."""

    def __init__(self, value, dtype="torch.float32"):
        self.value, self.dtype = np.asarray(value), dtype

    def detach(self):
        return self

    def float(self):
        return Tensor(self.value.astype(np.float32))

    def numpy(self):
        if self.dtype not in ("torch.float32", "torch.int64"):
            raise TypeError(f"Got unsupported ScalarType {self.dtype}")
        return self.value


def stand_in(monkeypatch, load):
    """A torch whose only ability is to load."""
    serialization = types.SimpleNamespace(safe_globals=lambda _: contextlib.nullcontext())
    torch = types.SimpleNamespace(load=load, serialization=serialization)
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.fixture
def pickled(tmp_path):
    """A file with the first bytes of a pickle."""
    path = tmp_path / "model.pth"
    path.write_bytes(b"\x80\x02}q\x00.")
    return path


def test_a_wrapped_state_dict_is_found(script, pickled, capsys):
    state = {"module.a": Tensor([1.0, 2.0]), "module.n": Tensor(3, "torch.int64")}
    loaded = {"state_dict": state, "epoch": 80, "best_mAP": 0.9, "cam_classifier_state_dict": {}}
    found = script.tensors_of(loaded, pickled)
    np.testing.assert_array_equal(found["module.a"], [1, 2])
    assert found["module.n"].shape == ()
    printed = "read from state_dict; also in the file, not read: best_mAP, cam_classifier_state_"
    assert printed in capsys.readouterr().out
    assert set(script.tensors_of(state, pickled)) == set(state)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ([1, 2], r"model.pth holds a list; expected a state dict"),
        ({"state_dict": {"a": 3}}, r"model.pth: 1 entries .* no tensors, e.g. \['a'\]"),
        ({"a": Tensor([1], "torch.float8_e5m2")}, r"model.pth: tensor a cannot be read \(Got unsu"),
    ],
)
def test_what_is_no_state_dict_is_refused(script, pickled, loaded, message):
    with pytest.raises(ValueError, match=message):
        script.tensors_of(loaded, pickled)


def test_bfloat16_stays_bfloat16(script, pickled):
    value = np.asarray([1.5, -0.25, 3e-5], jnp.bfloat16)
    found = script.tensors_of({"a": Tensor(value, "torch.bfloat16")}, pickled)["a"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, value)


def test_torch_is_asked_for_weights_only(script, pickled, monkeypatch):
    asked = {}

    def load(path, **options):
        asked.update(options, path=path)
        return {"a": Tensor([1.0])}

    stand_in(monkeypatch, load)
    assert set(script.read_pickled(pickled)) == {"a"}
    assert asked == {"path": pickled, "map_location": "cpu", "weights_only": True}


def test_the_reason_of_a_refusal_is_one_line(script, pickled, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("Weights only load failed.\nUnsupported global: GLOBAL os.system was")

    stand_in(monkeypatch, load)
    with pytest.raises(ValueError, match=r"model.pth: refused, .* would call os.system") as caught:
        script.read_pickled(pickled)
    assert "\n" not in str(caught.value)


def test_advice_to_read_unsafely_is_not_passed_on(script, pickled, monkeypatch):
    def load(*_, **__):
        raise ValueError(
            "Weights only load failed. Re-running with weights_only=False will likely succeed.\n"
            "WeightsUnpickler error: \n\nUnsupported operand 149\n\nCheck the documentation"
        )

    stand_in(monkeypatch, load)
    reason = r"model.pth: torch cannot read it \(ValueError: Unsupported operand 149\); fetch"
    with pytest.raises(ValueError, match=reason):
        script.read_pickled(pickled)


def test_without_torch_the_extra_is_named(script, pickled, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"model.pth .* pip install 'ccafl_jax\[convert\]'"):
        script.read_pickled(pickled)


def test_safetensors_need_no_torch(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    tensors = {f"module.{name}": value for name, value in ccafl().items()}
    path = write_tensors(tmp_path / "a.safetensors", tensors)
    script.to_run_folder(path, tmp_path / "run", {"image_size": [64, 32]})
    printed = capsys.readouterr().out
    assert "CCAFL: ResNet (layers (1, 1, 1, 1), width 8, last_stride 1)" in printed
    assert "feature: 256 numbers, gem, after the BN neck" in printed
    assert "taken off every name: module." in printed
    assert "passed over: batch counters (21), prompts (3), text tower (5), neck of" in printed
    assert f"scripts/evaluate.py --workdir {tmp_path / 'run'} --root" in printed
    assert read_run(tmp_path / "run").model.vision.image_size == (64, 32)
    with pytest.raises(FileExistsError, match="choose another --out"):
        script.to_run_folder(path, tmp_path / "run", {})


def test_to_safetensors_keeps_names_and_values(script, pickled, tmp_path, monkeypatch, capsys):
    state = {"module.visual.proj": Tensor([[1.0, 2.0]]), "module.logit_scale": Tensor(4.5)}
    stand_in(monkeypatch, lambda *_, **__: {"state_dict": state})
    out = tmp_path / "model.safetensors"
    script.to_safetensors(pickled, out)
    with TensorFiles(out) as files:
        assert list(files) == ["logit_scale", "visual.proj"]
        np.testing.assert_array_equal(files["visual.proj"], [[1, 2]])
        assert files["logit_scale"].shape == ()
    assert "2 tensors written" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="exists; choose another file"):
        script.to_safetensors(pickled, out)
    with pytest.raises(ValueError, match=r"is a safetensors file already, .* no prefix"):
        script.to_safetensors(out, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"does not end in .safetensors"):
        script.to_safetensors(pickled, tmp_path / "b.bin")
    with pytest.raises(FileNotFoundError, match="make it first"):
        script.to_safetensors(pickled, tmp_path / "none" / "b.safetensors")
    state["module.visual.proj"] = Tensor([[1.0, np.nan]])
    with pytest.raises(ValueError, match=r"model.pth: tensor visual.proj holds 1 of 2 values"):
        script.to_safetensors(pickled, tmp_path / "c.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pth", "model.safetensors"]


def test_a_prefix_is_taken_off_safetensors_too(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    value = np.ones((2, 3), np.float16)
    path = write_tensors(tmp_path / "a.safetensors", {"module.visual.proj": value})
    script.to_safetensors(path, tmp_path / "b.safetensors")
    with TensorFiles(tmp_path / "b.safetensors") as files:
        assert list(files) == ["visual.proj"] and files.dtype("visual.proj") == np.float16
        np.testing.assert_array_equal(files["visual.proj"], value)
    assert "taken off every name: module." in capsys.readouterr().out


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def as_torch(tensors):
    torch = pytest.importorskip("torch", reason="torch is needed to write its files")
    return {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_published_files_of_torch(script, tmp_path, zipped, module):
    """As CCAFL's: on two GPUs, with a numpy number beside the weights."""
    torch = pytest.importorskip("torch")
    state = {f"module.{name}": value for name, value in as_torch(ccafl()).items()}
    path = tmp_path / "model_best.pth.tar"
    loaded = {"state_dict": state, "epoch": 80, "best_mAP": np.float64(0.9)}
    torch.save(loaded, path, _use_new_zipfile_serialization=zipped)
    rename_numpy(path, module)
    found = convert(Checkpoint(script.read_pickled(path), path), image_size=(64, 32))
    expected = convert(Checkpoint(ccafl(), path), image_size=(64, 32))
    assert found.bundle.model == expected.bundle.model
    assert found.passed_over == expected.passed_over
    for name, value in expected.bundle.params.items():
        np.testing.assert_array_equal(found.bundle.params[name], value)


def rename_numpy(path, module):
    """Names numpy's private module as the version that wrote the file did."""
    names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    wanted = module.encode() + b".multiarray"

    def renamed(content):
        for name in names:
            content = content.replace(b"c" + name + b"\n", b"c" + wanted + b"\n")
        return content

    if not zipfile.is_zipfile(path):
        path.write_bytes(renamed(path.read_bytes()))
        return
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, value in content.items():
            new.writestr(name, renamed(value) if name.endswith("data.pkl") else value)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_file_of_torch_is_run(script, tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "trap.pth"
    sprung = tmp_path / "sprung"
    loaded = {"state_dict": as_torch(ccafl()), "extra": Trap(str(sprung))}
    torch.save(loaded, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"trap.pth: refused, .* would call \w+.mkdir, code"
    ) as caught:
        script.to_run_folder(path, tmp_path / "run", {})
    assert "\n" not in str(caught.value)
    assert not sprung.exists() and not (tmp_path / "run").exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # so the trap was a real one


def test_damaged_files_of_torch(script, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    tensors = clipreid_vit()
    tensors["image_encoder.proj"] = np.full_like(tensors["image_encoder.proj"], np.inf)
    torch.save(as_torch(tensors), path)
    options = {"image_size": (64, 32), **VIT_OPTIONS}
    with pytest.raises(ValueError, match=r"model.pth: tensor image_encoder.proj holds 384 of 384"):
        script.to_run_folder(path, tmp_path / "run", options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.pth is cut short or damaged"):
        script.to_run_folder(path, tmp_path / "run", options)
    torch.save(as_torch(tensors), path, _use_new_zipfile_serialization=False)
    for size in (30, 300, 3000, path.stat().st_size - 10):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"model.pth: (torch cannot|refused)") as caught:
            script.to_run_folder(path, tmp_path / "run", options)
        assert "\n" not in str(caught.value)
        torch.save(as_torch(tensors), path, _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ValueError, match=r"model.pth is a TorchScript archive.*timm/"):
        script.to_run_folder(path, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_half_precision_of_torch(script, tmp_path):
    torch = pytest.importorskip("torch")
    path, out = tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors"
    values = torch.tensor([[1.5, -0.25], [3e-5, 7.0]])
    state = {"a": values.bfloat16().t(), "b": values.half(), "c": torch.nn.Parameter(values)}
    torch.save(state, path)
    script.to_safetensors(path, out)
    with TensorFiles(out) as files:
        assert [files.dtype(n) for n in files] == [jnp.bfloat16, np.float16, np.float32]
        np.testing.assert_array_equal(files["a"], np.asarray(values.T).astype(jnp.bfloat16))
        np.testing.assert_array_equal(files["c"], values)


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def market_folder(root):
    """Three cameras, four people, each with colours of their own and noise."""
    rng = np.random.default_rng(0)
    for folder, shots in (("bounding_box_train", 1), ("query", 1), ("bounding_box_test", 2)):
        (root / folder).mkdir(parents=True)
        for pid in range(1, 5):
            colour = np.random.default_rng(pid).integers(0, 256, (1, 1, 3))
            for cam in range(1, 4):
                for shot in range(shots):
                    pixels = colour + rng.integers(-40, 40, (64, 32, 3))
                    name = f"{pid:04d}_c{cam}s1_{shot:06d}_00.png"
                    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                    image.save(root / folder / name)
    return root


@pytest.mark.ci
def test_convert_then_evaluate(tmp_path):
    market = market_folder(tmp_path / "market")
    path = write_tensors(tmp_path / "vit.safetensors", clipreid_vit())
    size = ("--image-size", 64, 32)
    arguments = (SCRIPT, "--checkpoint", path, "--out", tmp_path / "run", *size)
    finished = run(*arguments, "--heads", 4)
    assert finished.returncode == 2
    assert "strides [13, 14, 15, 16] all give that many: pass --stride" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()
    finished = run(*arguments, "--heads", 4, "--stride", 16, "--camera-scale", 3)
    assert finished.returncode == 0, finished.stderr
    assert "camera embedding: 3 rows, times 3.0" in finished.stdout
    result = tmp_path / "result.json"
    evaluate = ROOT / "scripts" / "evaluate.py"
    finished = run(evaluate, "--workdir", tmp_path / "run", "--root", market, "--json", result)
    assert finished.returncode == 0, finished.stderr
    assert "CLIP-ReID converted from vit.safetensors" in finished.stdout
    found = json.loads(result.read_text())
    with TensorFiles(path) as files:
        converted = convert(Checkpoint(files, path), image_size=(64, 32), **VIT_OPTIONS)
    expected = evaluate_bundle(converted.bundle, root=str(market))
    assert found["mAP"] == pytest.approx(expected["mAP"], rel=1e-6) and found["mAP"] > 0.5
    finished = run(evaluate, "--workdir", tmp_path / "run")
    assert finished.returncode == 2 and "pass --root DIR" in finished.stderr


@pytest.mark.ci
def test_help_and_errors(tmp_path):
    finished = run(SCRIPT, "--help")
    assert finished.returncode == 0 and "examples:" in finished.stdout
    finished = run(SCRIPT, "--checkpoint", "none.pth", "--out", tmp_path / "run")
    assert finished.returncode == 2 and "error: no file none.pth" in finished.stderr
    finished = run(SCRIPT, "--checkpoint", "a", "--to-safetensors", "b", "--stride", 12)
    assert finished.returncode == 2 and "takes no ['stride']" in finished.stderr
