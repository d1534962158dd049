import functools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.deploy import convert as module
from ccafl_jax.deploy.archive import write_safetensors
from ccafl_jax.deploy.convert import convert, write_converted
from ccafl_jax.deploy.forward import abstract_model
from ccafl_jax.deploy.published import HALF, IMAGENET, infer_reid_config
from ccafl_jax.deploy.run_folder import read_run
from ccafl_jax.deploy.torch_checkpoint import Checkpoint, check_pickled
from ccafl_jax.models.clip.config import ResNetConfig, ViTConfig
from ccafl_jax.models.tensor_files import TensorFiles, write_tensors
from ccafl_jax.training.state import merge_model
from tests.deploy import tiny
from tests.deploy.published import VIT_OPTIONS, ccafl, clipreid_resnet, clipreid_vit
from tests.golden_data import golden
from tests.models.checkpoints import close, to_nhwc

SIZE = (64, 32)


def from_file(tmp_path, tensors, **options):
    """Converts a checkpoint in a file, writes the run folder and reads it back."""
    path = write_tensors(tmp_path / "model.safetensors", tensors)
    with TensorFiles(path) as files:
        converted = convert(Checkpoint(files, path), image_size=SIZE, **options)
    write_converted(tmp_path / "run", converted.bundle)
    return converted, read_run(tmp_path / "run")


@functools.cache
def embedding(config):
    """The jitted features of a model of these sizes, as a function of its arrays."""
    graphdef = nnx.split(abstract_model(config), nnx.Param, nnx.BatchStat)[0]

    @jax.jit
    def embed(params, batch_stats, x, cameras):
        return merge_model(graphdef, params, batch_stats).embed(x, cameras)

    return embed


def features(bundle, x, cameras=None):
    return embedding(bundle.model)(bundle.params, bundle.batch_stats, to_nhwc(x), cameras)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_ccafl(tmp_path):
    data = golden("03_wrapper_s0")
    converted, bundle = from_file(tmp_path, ccafl())
    close(features(bundle, data["x"]), data["eval_feature"])
    assert converted.kind == "CCAFL"
    assert (bundle.preprocess.mean, bundle.preprocess.std) == IMAGENET
    assert bundle.preprocess.pixels == PixelFormat(*SIZE, "bicubic")
    assert bundle.source == "CCAFL converted from model.safetensors, checkpoint 0"
    passed = {what: len(names) for what, names in converted.passed_over.items()}
    assert passed == {
        "prompts": 3,
        "text tower": 5,
        "batch counters": 21,
        "neck of the projection": 4,
        "shifts of the neck": 1,
    }
    assert bundle.recipe["config"]["passed_over"] == passed


def test_clipreid_resnet(tmp_path):
    data = golden("03_wrapper_s0")
    _, bundle = from_file(tmp_path, clipreid_resnet())
    pooled = np.concatenate([data["eval_x4"].mean((2, 3)), data["eval_get_image"]], axis=1)
    close(features(bundle, data["x"]), unit(pooled))
    assert bundle.preprocess.mean == IMAGENET[0] and bundle.model.features == 256 + 16


@pytest.mark.parametrize(
    ("sie", "feature", "name"),
    [
        (True, None, "wrapper_eval_before"),
        (False, "neck", "wrapper_eval_after_nosie"),
    ],
)
def test_clipreid_vit(tmp_path, sie, feature, name):
    data = golden("04_vit_s0")
    tensors, options = clipreid_vit(), dict(VIT_OPTIONS)
    if not sie:
        del tensors["cv_embed"], options["camera_scale"]
    converted, bundle = from_file(tmp_path, tensors, feature=feature, **options)
    cameras = jnp.asarray(data["cams"]) if sie else None
    close(features(bundle, data["x"], cameras), unit(data[name]))
    assert converted.kind == "CLIP-ReID" and bundle.model.heads.cameras == (3 if sie else 0)
    assert (bundle.preprocess.mean, bundle.preprocess.std) == HALF
    passed = {what: len(names) for what, names in converted.passed_over.items()}
    assert passed["classifiers"] == 2 and passed["shifts of the neck"] == 2


def test_prefixes_and_half_precision_change_nothing_else():
    plain = convert(Checkpoint(ccafl(), "a.pth"), image_size=SIZE).bundle
    halves = {n: x.astype(np.float16) if x.ndim else x for n, x in ccafl().items()}
    wrapped = {f"module._orig_mod.{name}": x for name, x in halves.items()}
    checkpoint = Checkpoint(wrapped, "a.pth")
    assert checkpoint.prefix == "module._orig_mod." and set(checkpoint) == set(ccafl())
    found = convert(checkpoint, image_size=SIZE, mean=[0.1, 0.2, 0.3]).bundle
    assert found.model == plain.model and found.preprocess.mean == (0.1, 0.2, 0.3)
    for path, value in plain.params.items():
        assert found.params[path].dtype == np.float32
        np.testing.assert_array_equal(found.params[path], np.float16(value).astype(np.float32))


def of_shapes(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def vit_shapes(rows, *, patch=16, width=768):
    tower = "image_encoder."
    return of_shapes(
        {
            f"{tower}class_embedding": (width,),
            f"{tower}conv1.weight": (width, 3, patch, patch),
            f"{tower}positional_embedding": (rows, width),
            f"{tower}transformer.resblocks.0.mlp.c_fc.bias": (4 * width,),
            f"{tower}transformer.resblocks.11.ln_1.weight": (width,),
            "bottleneck_proj.weight": (512,),
            "cv_embed": (15, width),
        }
    )


def resnet_shapes(rows):
    names = [f"layer{s}.{n - 1}.conv1.weight" for s, n in ((1, 3), (2, 4), (3, 23), (4, 3))]
    tower = "image_encoder."
    return of_shapes(
        {f"{tower}{name}": (1, 1, 1, 1) for name in names}
        | {
            f"{tower}layer1.0.bn1.weight": (64,),
            f"{tower}attnpool.positional_embedding": (rows, 2048),
            f"{tower}attnpool.c_proj.bias": (512,),
            "gap.p": (1,),
        }
    )


@pytest.mark.parametrize(
    ("rows", "size", "stride"),
    [(129, (256, 128), 16), (211, (256, 128), 12), (193, (384, 128), 16), (311, (384, 128), 12)],
)
def test_sizes_of_a_vit_follow_from_its_tensors(rows, size, stride):
    config = infer_reid_config(vit_shapes(rows), size)
    assert config.vision == ViTConfig(
        layers=12,
        width=768,
        heads=12,
        mlp_width=3072,
        patch_size=16,
        image_size=size,
        stride=stride,
    )
    assert config.embed_dim == 512 and config.features == 1280
    # CLIP-ReID's commands state 1.0, unlike the default of its code.
    assert config.heads.cameras == 15 and config.heads.camera_scale == 1.0
    assert config.heads.feature == "pooled" and config.activation == "quick_gelu"


@pytest.mark.parametrize(("rows", "stride"), [(129, 1), (33, 2)])
def test_sizes_of_a_resnet_follow_from_its_tensors(rows, stride):
    config = infer_reid_config(resnet_shapes(rows), (256, 128))
    assert config.vision == ResNetConfig(
        layers=(3, 4, 23, 3), width=64, image_size=(256, 128), last_stride=stride
    )
    assert config.embed_dim == 512 and config.heads.feature == "neck"


@pytest.mark.parametrize(
    ("tensors", "size", "options", "message"),
    [
        (vit_shapes(33, patch=32), (256, 128), {}, r"strides \[29, 30, 31, 32\] all.*--stride"),
        (vit_shapes(211), (256, 128), {"stride": 16}, r"stride 16 does not give them, \[12\] does"),
        (vit_shapes(193), (256, 128), {}, r"193 rows.*try --image-size 384 128 \(stride 16\)"),
        (vit_shapes(198), (256, 128), {}, r"198 rows.*no common size does"),
        (resnet_shapes(129), (250, 128), {}, r"129 rows.*--image-size 256 128 \(stride 1\)"),
        (resnet_shapes(129), (256, 128), {"heads": 3}, "drop --heads"),
        (resnet_shapes(129), (256, 128), {"activation": "quick_gelu"}, "drop --activation"),
        (resnet_shapes(129), (256, 128), {"camera_scale": 1.0}, "drop --camera-scale"),
        (vit_shapes(129), (256, 128), {"heads": 0}, "heads is 0; pass --heads of 1 or more"),
        (vit_shapes(129), (256, 128), {"heads": -4}, "heads is -4; pass --heads of 1 or more"),
        (vit_shapes(129, width=96), (256, 128), {}, "96, is no multiple of 64.*pass --heads"),
        (vit_shapes(129), (256, 128), {"activation": "relu"}, "'relu'; choose one of"),
        ({"visual.conv1.weight": np.zeros(1)}, (256, 128), {}, "--to-safetensors"),
        ({"fc.weight": np.zeros(1)}, (256, 128), {}, r"named image_encoder.\*, but e.g. \['fc.w"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tensors, size, options, message):
    with pytest.raises(ValueError, match=message):
        infer_reid_config(tensors, size, **options)


def without(name):
    return lambda tensors: tensors.pop(name)


def changed(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def nan(x):
    return np.full_like(x, np.nan)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("gap.p"), r"tensor gap.p is missing: .*only in CCAFL"),
        (without("image_encoder.conv2.weight"), r"1 \['image_encoder.conv2.weight'\] missing"),
        (without("image_encoder.attnpool.c_proj.bias"), "tensor .*c_proj.bias is missing, which"),
        (without("bottleneck.running_var"), r"\['bottleneck.running_var'\] missing"),
        (changed("gap.p", lambda x: np.zeros(2, x.dtype)), r"tensor gap.p has shape \[2\]"),
        (lambda t: t.update(extra=np.zeros(2)), r"1 \['extra'\] unknown to the model"),
        (lambda t: t.update({"cam_head.weight": np.zeros(2)}), "'cam_head.weight'.* unknown"),
        (
            changed("image_encoder.attnpool.c_proj.weight", np.transpose),
            r"c_proj.weight has shape \[256, 16\].*expects \[16, 256\]; its axes are in another",
        ),
        (
            changed("image_encoder.layer1.0.bn1.weight", lambda x: x[None]),
            r"bn1.weight has shape \[1, 8\], expected 1 axes",
        ),
        (changed("image_encoder.conv2.weight", nan), "tensor image_encoder.conv2.weight holds"),
        (changed("bottleneck.bias", np.ones_like), "bottleneck.bias is not 0"),
    ],
)
def test_both_sides_are_covered(tmp_path, spoil, message):
    tensors = ccafl()
    spoil(tensors)
    with pytest.raises(ValueError, match=message) as caught:
        convert(Checkpoint(tensors, tmp_path / "a.pth"), image_size=SIZE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("a.pth") == 1
    path = write_tensors(tmp_path / "b.safetensors", tensors)
    with TensorFiles(path) as files, pytest.raises(ValueError, match=message) as caught:
        convert(Checkpoint(files, path), image_size=SIZE)
    assert str(caught.value).count("b.safetensors") == 1


def test_a_damaged_part_that_is_not_used_does_no_harm():
    tensors = ccafl()
    tensors["text_encoder.text_projection"] = nan(tensors["text_encoder.text_projection"])
    assert convert(Checkpoint(tensors, "a.pth"), image_size=SIZE).kind == "CCAFL"


def test_a_resnet_passes_over_a_camera_embedding():
    tensors = clipreid_resnet() | {"cv_embed": np.zeros((6, 256), np.float32)}
    converted = convert(Checkpoint(tensors, "a.pth"), image_size=SIZE)
    assert converted.passed_over["camera embedding (not read by a ResNet)"] == ["cv_embed"]


def test_a_prefix_of_some_names_is_an_error():
    tensors = {f"module.{name}": x for name, x in ccafl().items()}
    tensors["gap.p"] = tensors.pop("module.gap.p")
    with pytest.raises(ValueError, match=r"a.pth: \d+ of \d+ tensors are named module.\*, others"):
        Checkpoint(tensors, "a.pth")
    with pytest.raises(ValueError, match=r"a.pth holds no tensors"):
        Checkpoint({}, "a.pth")


def test_std_and_mean_are_checked():
    for options, message in (
        ({"mean": (0.5, 0.5)}, "three numbers each"),
        ({"mean": ()}, "three numbers each"),
        ({"std": (0.0, 1.0, 1.0)}, "std above 0 and up to 1"),
        ({"std": (58.395, 57.12, 57.375)}, "colours are scaled to 0..1"),
        ({"mean": (123.675, 116.28, 103.53)}, "colours are scaled to 0..1.* divide .* by 255"),
        ({"mean": (-0.1, 0.5, 0.5)}, "mean lies in 0..1"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "mean lies in 0..1"),
    ):
        with pytest.raises(ValueError, match=f"a.pth: .*{message}"):
            convert(Checkpoint(ccafl(), "a.pth"), image_size=SIZE, **options)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_an_export_of_this_library_needs_no_conversion(tmp_path, kind):
    write_safetensors(tmp_path, tiny.bundle(kind))
    path = tmp_path / "model.safetensors"
    with TensorFiles(path) as files, pytest.raises(ValueError, match="of this library") as caught:
        convert(Checkpoint(files, path))
    assert str(caught.value).startswith(f"{path}: this is an export of this library")
    assert str(caught.value).endswith("by ccafl_jax.load")


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    bundle = convert(Checkpoint(ccafl(), "a.pth"), image_size=SIZE).bundle

    def fail(folder, _):
        (folder / "checkpoints").mkdir()
        raise OSError("no space left")

    monkeypatch.setattr(module, "write_run", fail)
    out = tmp_path / "run"
    with pytest.raises(OSError, match="no space"):
        write_converted(out, bundle)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(OSError, match="no space"):
        write_converted(out, bundle)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    monkeypatch.undo()
    assert write_converted(out, bundle) == out / "checkpoints"
    assert sorted(p.name for p in out.iterdir()) == ["checkpoints", "notes.txt"]
    with pytest.raises(FileExistsError, match="holds checkpoints already"):
        write_converted(out, bundle)
    with pytest.raises(FileExistsError, match="is a file"):
        write_converted(out / "notes.txt", bundle)


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(f"model/{name}", b"x" * 100)
    return path.read_bytes()


def test_pickled_files_are_told_by_their_bytes(tmp_path):
    path = tmp_path / "model.pth"
    whole = archive(path, "data.pkl", "data/0")
    check_pickled(path)
    path.write_bytes(b"\x80\x02}q\x00.")
    check_pickled(path)
    cases = {
        b"": "is empty",
        whole[:-30]: "cut short or damaged",
        archive(path, "data.pkl", "constants.pkl", "code/a.py"): "TorchScript.*timm/resnet50_clip",
        archive(path, "image.jpg"): "torch.save did not write",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        b"\n <!DOCTYPE html><html>": "is a web page",
        b"\x10\0\0\0\0\0\0\0{}": "give it the suffix .safetensors",
        b"\xff\xd8\xff\xe0": "not written by torch.save",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            check_pickled(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no file .*none.pth"):
        check_pickled(tmp_path / "none.pth")
