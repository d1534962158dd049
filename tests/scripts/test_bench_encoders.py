"""The benchmarks of towers and of loading: their counts, their verdicts, and that they run."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts" / "bench"))

import encoders
import encoders_work

from ccafl_jax.models.clip import ResNetConfig, build_tower

ROOT = pathlib.Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"
TABLES = ("positional_embedding", "class_embedding")


def run(script, *arguments, timeout=600):
    return subprocess.run(
        [sys.executable, str(BENCH / script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )


def work_of(name, size, batch=1):
    family = encoders.FAMILIES[name]
    return encoders_work.products(family.vision(size), embed_dim=family.embed_dim, batch=batch)


# Multiply-adds an image at 224x224, as published with timm and open_clip: 17.6, 4.4 and 81 G.
@pytest.mark.parametrize(
    ("name", "giga"), [("ViT-B/16", 17.56), ("ViT-B/32", 4.41), ("ViT-L/14", 81.1)]
)
def test_published_operations(name, giga):
    macs = encoders_work.flops(work_of(name, (224, 224)), train=False) / 2e9
    assert macs == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", ["RN50x4", "ViT-B/16"])
def test_every_weight_of_the_tower_is_counted_once(name):
    family = encoders.FAMILIES[name]
    vision = family.vision((256, 128))

    def build():
        return build_tower(
            vision, out_features=family.embed_dim, activation="quick_gelu", rngs=nnx.Rngs(0)
        )

    state = nnx.to_flat_state(nnx.state(nnx.eval_shape(build), nnx.Param))
    kernels = sum(
        math.prod(value.shape)
        for path, value in state
        if len(value.shape) > 1 and path[-1] not in TABLES
    )
    assert sum(product.weights for product in work_of(name, (256, 128))) == kernels


def test_counts_by_hand():
    vision = ResNetConfig(layers=(1, 1, 1, 1), width=8, image_size=(32, 32), last_stride=1)
    first, second, *rest = encoders_work.products(vision, embed_dim=16, batch=2)
    assert first.flops(train=False) == 2 * (2 * 16 * 16) * 27 * 4
    assert first.flops(train=True) == 2 * first.flops(train=False)  # images need no gradient
    assert second.flops(train=True) == 3 * 2 * (2 * 16 * 16) * 36 * 4
    # Read 2048, write 2048, 144 weights; back: both again, 2048 written, weights read and written.
    assert second.bytes(train=True, width=2) == 2 * 5 * 2048 + 3 * 4 * 144
    assert {product.group for product in rest} == {
        "stem",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "attention pool",
    }


def test_floor_takes_the_binding_rate_of_each_product():
    sizes = {"group": "g", "rows": 10, "inner": 10, "columns": 10, "weights": 0}
    heavy = encoders_work.Product(read=0, written=1, **sizes)  # 6000 operations, 4 bytes
    light = encoders_work.Product(read=1000, written=0, **sizes)  # 6000 operations, 6000 bytes
    rates = {"width": 2, "flop_rate": 6000.0, "byte_rate": 1000.0}
    floor = encoders_work.floors([heavy, light], **rates)["g"]
    assert floor["seconds"] == pytest.approx(1.0 + 6.0)
    assert floor["bound"] == "bytes" and floor["flops"] == 12000 and floor["bytes"] == 6004


def case(**changes):
    group = {"seconds": {"median": 0.03}, "floor_seconds": 0.01, "bound": "bytes"}
    small = group | {"floor_seconds": 0.029, "share_of_floor": 0.97}
    groups = {"layer1": group | {"share_of_floor": 1 / 3}, "layer2": small}
    values = {"family": "RN50", "train_ratio": 1.2, "share_of_own_matmul": 0.5, "groups": groups}
    return values | changes


def test_verdicts_name_what_binds():
    required, goal, share = encoders.verdicts(case())
    assert required.endswith("is 1.20: met") and share.endswith("is 0.50: met")
    assert "goal 1.5" in goal and "MISSED" in goal
    assert "lost in layer1: 20.00 ms" in goal and "bound by bytes and reached to 33 %" in goal
    assert len(encoders.verdicts(case(family="RN101"))) == 2
    assert "MISSED" in encoders.verdicts(case(train_ratio=0.99))[0]


def test_random_module_fills_every_variable():
    model = encoders.random_module(lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    values = {path[-1]: value for path, value in nnx.to_flat_state(nnx.state(model))}
    assert float(values["scale"][...].sum()) == 3.0 and float(values["bias"][...].sum()) == 0.0
    assert all(isinstance(value, jax.Array) for value in jax.tree.leaves(nnx.state(model)))


@pytest.mark.ci
@pytest.mark.parametrize("family", ["RN50", "ViT-B/16"])
def test_tiny_run_measures_everything(tmp_path, family):
    path = tmp_path / "figures.json"
    printed = run("encoders.py", "--tiny", "--families", family, "--json", path).stdout
    assert "for regression only" in printed and "MISSED" not in printed
    (found,) = json.loads(path.read_text())["cases"]
    assert "error" not in found, found
    for kind in ("forward", "train"):
        taken = found[kind]["seconds"]
        assert 0 < taken["min"] <= taken["median"] <= taken["max"]
        assert found[kind]["images_per_second"] == pytest.approx(2 / taken["median"])
        # The compiler leaves padding out and counts norms and activations.
        assert 0.6 < found[kind]["compiler_flops"] / found[kind]["flops"] < 1.7
    groups = {
        "RN50": ["stem", "layer1", "layer2", "layer3", "layer4", "attention pool"],
        "ViT-B/16": ["patch embedding", "attention", "MLP", "projection"],
    }[family]
    assert list(found["groups"]) == groups
    assert sum(g["flops"] for g in found["groups"].values()) == found["train"]["flops"]


@pytest.mark.ci
def test_remat_and_bfloat16_run(tmp_path):
    path = tmp_path / "figures.json"
    arguments = ["--tiny", "--families", "ViT-B/32", "--dtype", "bfloat16", "--remat"]
    run("encoders.py", *arguments, "--no-groups", "--json", path)
    (found,) = json.loads(path.read_text())["cases"]
    assert "error" not in found and "groups" not in found


@pytest.mark.ci
def test_imports_little():
    blocked = ["ml_collections", "transformers", "tensorflow", "safetensors", "PIL", "torch"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); "
        f"sys.path.insert(0, {str(BENCH)!r}); import encoders; encoders.parse(['--tiny'])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.ci
def test_tiny_loads(tmp_path):
    path = tmp_path / "loads.json"
    arguments = [
        "--tiny",
        "--repeats",
        1,
        "--families",
        "ViT-B/16",
        "--forms",
        "float16",
        "sharded",
    ]
    run("load_weights.py", *arguments, "--json", path)
    found = json.loads(path.read_text())
    assert len(found) == 4 and all(entry["within_bounds"] for entry in found)
