import json
import pickle
import re
import stat
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ccafl_jax.models.tensor_files import (
    TensorFiles,
    raised,
    weight_files,
    write_shards,
    write_tensors,
)


def some_tensors():
    rng = np.random.default_rng(0)
    return {
        "single": rng.normal(size=(3, 4)).astype(np.float32),
        "half": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "brain": rng.normal(size=(5,)).astype(jnp.bfloat16),
        "counter": np.array(7, np.int64),
        "scalar": np.array(0.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True, False]),
    }


def equal(left, right):
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert left.tobytes() == right.tobytes()


def error_of(function, kind=ValueError):
    with pytest.raises(kind) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- writing and reading back -----------------------------------------------------------------


def test_every_dtype_comes_back_bit_by_bit(tmp_path):
    tensors = some_tensors()
    path = write_tensors(tmp_path / "model.safetensors", tensors, {"note": "of a test"})
    with TensorFiles(tmp_path) as files:
        assert list(files) == sorted(tensors)
        assert len(files) == len(tensors)
        for name, value in tensors.items():
            assert files.shape(name) == value.shape
            assert files.dtype(name) == value.dtype
            equal(files[name], value)
    with safetensors.safe_open(str(path), framework="np") as other:
        assert other.metadata() == {"note": "of a test"}


def test_memory_order_and_library_of_the_arrays_do_not_matter(tmp_path):
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {
        "transposed": value.T,
        "strided": value[:, ::2],
        "big_endian": value.astype(">f4"),
        "jax": jnp.asarray(value, jnp.bfloat16),
    }
    path = write_tensors(tmp_path / "x.safetensors", tensors)
    with TensorFiles(path) as files:
        for name in tensors:
            np.testing.assert_array_equal(np.asarray(files[name]), np.asarray(tensors[name]))
        assert files.dtype("big_endian") == np.float32
        assert files.dtype("jax") == jnp.bfloat16


def test_a_file_is_replaced_and_readable_by_all(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.zeros(2)})
    write_tensors(path, {"b": np.ones(3)})
    with TensorFiles(path) as files:
        assert list(files) == ["b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failing_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(2)})
    before = path.read_bytes()

    def fail(tensors, filename, metadata):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"a": np.ones(2)})
    with pytest.raises(OSError, match="disk full"):
        write_shards(tmp_path / "shards", {"a": np.ones(2)}, 1)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["shards", "x.safetensors"]


def test_failing_shards_leave_nothing(tmp_path, monkeypatch):
    save, calls = safetensors.numpy.save_file, []

    def fail_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("disk full")
        save(*args, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", fail_second)
    with pytest.raises(OSError, match="disk full"):
        write_shards(tmp_path, some_tensors(), 3)
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_what_would_not_be_read(tmp_path):
    message = error_of(lambda: write_tensors(tmp_path / "x.npz", {}))
    assert "x.npz" in message
    message = error_of(lambda: write_tensors(tmp_path / "x.safetensors", {"o": np.array([{}])}))
    assert "x.safetensors: tensor o is object" in message
    assert list(tmp_path.iterdir()) == []


def test_raised_touches_half_precision_only():
    for name, value in some_tensors().items():
        if name in ("half", "brain"):
            assert raised(value).dtype == np.float32
            np.testing.assert_array_equal(raised(value).astype(value.dtype), value)
        else:
            assert raised(value) is value
    assert raised(np.zeros(2, np.int16)).dtype == np.int16


# --- shards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_come_back(tmp_path, count):
    tensors = some_tensors()
    index = write_shards(tmp_path / "new", tensors, count)
    assert index.name == "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert content["metadata"]["total_size"] == sum(v.nbytes for v in tensors.values())
    assert set(content["weight_map"]) == set(tensors)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert weight_files(tmp_path / "new") == [tmp_path / "new" / name for name in names]
    with TensorFiles(tmp_path / "new") as files:
        assert list(files) == sorted(tensors)
        for name, value in tensors.items():
            equal(files[name], value)
            assert (
                files.where(name) == f"{index.parent / content['weight_map'][name]}: tensor {name}"
            )


def test_shards_have_about_equal_size(tmp_path):
    tensors = {f"{i:02d}": np.zeros(1000, np.float32) for i in range(12)}
    write_shards(tmp_path, tensors, 4)
    sizes = []
    for path in weight_files(tmp_path):
        with TensorFiles(path) as files:
            sizes.append(len(files))
    assert sizes == [3, 3, 3, 3]


def test_shards_need_tensors_and_an_empty_place(tmp_path):
    assert "2 tensors" in error_of(lambda: write_shards(tmp_path, {"a": 0, "b": 0}, 3))
    write_tensors(tmp_path / "model.safetensors", {"a": np.zeros(1)})
    message = error_of(lambda: write_shards(tmp_path, some_tensors(), 2), FileExistsError)
    assert "['model.safetensors']" in message


def make_shards(directory):
    tensors = {"a": np.zeros(8, np.float32), "b": np.ones(8, np.float32)}
    index = write_shards(directory, tensors, 2)
    return index, *weight_files(directory)


def test_missing_shard(tmp_path):
    index, _, second = make_shards(tmp_path)
    second.unlink()
    message = error_of(lambda: weight_files(tmp_path), FileNotFoundError)
    assert f"{index} lists ['{second.name}']" in message


def test_shards_without_their_index(tmp_path):
    index, first, second = make_shards(tmp_path)
    index.unlink()
    message = error_of(lambda: weight_files(tmp_path), FileNotFoundError)
    assert f"{first.name!r}, {second.name!r}], without their index: place" in message
    assert "*.safetensors.index.json" in message
    second.unlink()  # a part of a model is not taken for the model
    assert "without their index" in error_of(lambda: weight_files(tmp_path), FileNotFoundError)
    only = first.rename(tmp_path / "model-00001-of-00001.safetensors")
    assert weight_files(tmp_path) == [only]


def test_index_lists_a_tensor_that_its_shard_lacks(tmp_path):
    _, first, second = make_shards(tmp_path)
    write_tensors(second, {"renamed": np.ones(8, np.float32)})
    assert f"{second}: tensor b is not there" in error_of(lambda: TensorFiles(tmp_path))
    # in another shard than the index says
    write_tensors(first, {"b": np.ones(8, np.float32)})
    write_tensors(second, {"a": np.zeros(8, np.float32)})
    assert f"{first}: tensor a is not there" in error_of(lambda: TensorFiles(tmp_path))


def test_a_tensor_in_two_shards(tmp_path):
    _, first, second = make_shards(tmp_path)
    write_tensors(second, {"a": np.zeros(8), "b": np.ones(8)})
    message = error_of(lambda: TensorFiles(tmp_path))
    assert f"{second}: tensor a is in {first.name} too" in message


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}'],
)
def test_broken_index(tmp_path, content):
    index, *_ = make_shards(tmp_path)
    index.write_bytes(content)
    assert str(index) in error_of(lambda: weight_files(tmp_path))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a\\x.safetensors", "..", "", 3, "model.bin"]
)
def test_an_index_stays_in_its_directory(tmp_path, name):
    write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(1)})
    (tmp_path / "in").mkdir()
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    assert f"{index} places tensor a in {name!r}" in error_of(lambda: weight_files(index.parent))


# --- which files ------------------------------------------------------------------------------


def test_priority_of_the_names(tmp_path):
    names = ["other.safetensors", "model.safetensors", "open_clip_model.safetensors"]
    for name in names:
        write_tensors(tmp_path / name, {"a": np.zeros(1)})
        assert weight_files(tmp_path) == [tmp_path / name]
    assert weight_files(tmp_path / names[0]) == [tmp_path / names[0]]
    for name in names[1:]:
        (tmp_path / name).unlink()
    write_tensors(tmp_path / "another.safetensors", {"a": np.zeros(1)})
    assert "['another.safetensors', 'other.safetensors']" in error_of(
        lambda: weight_files(tmp_path)
    )


def test_nothing_there(tmp_path):
    message = error_of(lambda: weight_files(tmp_path / "none"), FileNotFoundError)
    assert str(tmp_path / "none") in message
    message = error_of(lambda: weight_files(tmp_path), FileNotFoundError)
    assert "no *.safetensors file; place" in message
    (tmp_path / "x.npz").write_bytes(b"")
    assert "x.npz" in error_of(lambda: weight_files(tmp_path / "x.npz"))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickled_files_are_refused_with_the_reason(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"a": 1}))
    for message in (
        error_of(lambda: weight_files(tmp_path), FileNotFoundError),
        error_of(lambda: TensorFiles(path)),
    ):
        assert path.name in message
        assert "run code" in message
        assert "scripts/convert_weights.py" in message
    write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(1)})
    assert weight_files(tmp_path) == [tmp_path / "x.safetensors"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "zip"])
def test_pickles_under_another_name_are_refused(tmp_path, protocol):
    path = tmp_path / "model.safetensors"
    if protocol == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}))
    else:
        path.write_bytes(pickle.dumps({"a": np.zeros(3)}, protocol))
    for place in (path, tmp_path):
        message = error_of(lambda place=place: weight_files(place))
        assert str(path) in message
        assert "run code" in message


@pytest.mark.parametrize("low", [0x02, 0x03, 0x04, 0x05])
def test_a_header_size_that_looks_like_a_pickle_is_none(tmp_path, low):
    """The size 0x0280 is written as the two bytes that a pickle of protocol 2 starts with."""
    path = write_tensors(tmp_path / "x.safetensors", {"a": np.arange(3)})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    padded = int.from_bytes(bytes([0x80, low]), "little")
    header = content[8 : 8 + size].ljust(padded)
    path.write_bytes(padded.to_bytes(8, "little") + header + content[8 + size :])
    with TensorFiles(path) as files:
        np.testing.assert_array_equal(files["a"], np.arange(3))


# --- damaged files ----------------------------------------------------------------------------


def damaged(kind, content):
    return {
        "cut": content[:-5],
        "cut in the header": content[:40],
        "longer": content + b"123",
        "empty": b"",
        "page": b"<!DOCTYPE html><html>" * 40,
        "noise": np.random.default_rng(0).bytes(1000),
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "cut in the header", "longer", "empty", "page", "noise"])
def test_incomplete_files(tmp_path, kind):
    path = write_tensors(tmp_path / "x.safetensors", some_tensors())
    path.write_bytes(damaged(kind, path.read_bytes()))
    message = error_of(lambda: TensorFiles(tmp_path))
    assert re.match(
        rf"{re.escape(str(path))} is not a complete safetensors file \(.+\): fetch it again$",
        message,
    )


def test_a_pointer_of_git_lfs(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert f"{path} is a pointer of Git LFS" in error_of(lambda: TensorFiles(tmp_path))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, dtype, bad):
    value = np.ones((4, 5), dtype)
    value[1, 2] = value[3, 4] = bad
    path = write_tensors(tmp_path / "x.safetensors", {"bad": value, "good": np.ones(2)})
    with TensorFiles(path) as files:
        message = error_of(lambda: files["bad"])
        assert message.startswith(f"{path}: tensor bad holds 2 of 20 values that are not finite")
        assert "fetch it again" in message
        np.testing.assert_array_equal(files["good"], np.ones(2))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_the_largest_values_are_finite(tmp_path, dtype):
    value = np.full(100, jnp.finfo(dtype).max, dtype)
    path = write_tensors(tmp_path / "x.safetensors", {"a": value})
    with TensorFiles(path) as files:
        equal(files["a"], value)


def test_a_dtype_that_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.ones(3, jnp.float8_e4m3fn)}, str(path))
    with TensorFiles(path) as files:
        assert f"{path}: tensor a is stored as F8_E4M3" in error_of(lambda: files["a"])


# --- reading when asked -----------------------------------------------------------------------


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(4), "b": np.ones(4)})
    with TensorFiles(path) as files:
        with path.open("r+b") as file:  # b is last in the file
            file.seek(-8, 2)
            file.write(np.float64(5).tobytes())
        np.testing.assert_array_equal(files["b"], [1, 1, 1, 5])
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 8)
        assert f"{path}: tensor b cannot be read" in error_of(lambda: files["b"])
        np.testing.assert_array_equal(files["a"], np.zeros(4))


def test_memory_holds_one_tensor_at_a_time(tmp_path):
    size = 1 << 20
    tensors = {f"{i}": np.ones(size // 4, np.float32) for i in range(8)}
    path = write_tensors(tmp_path / "x.safetensors", tensors)
    tracemalloc.start()
    try:
        with TensorFiles(path) as files:
            assert all("7" in files and files.shape(name) == (size // 4,) for name in files)
            assert tracemalloc.get_traced_memory()[1] < size / 8
            for name in files:
                assert files[name][0] == 1
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()


def test_a_mapping_of_its_names(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"b": np.zeros(1), "a": np.ones(1)})
    with TensorFiles(path) as files:
        assert "a" in files
        assert "c" not in files
        assert files.get("c") is None
        with pytest.raises(KeyError):
            files["c"]
        assert {name: value[0] for name, value in files.items()} == {"a": 1, "b": 0}
        kept = files["a"]
    np.testing.assert_array_equal(kept, [1])
    for use in (lambda: files["a"], lambda: files.shape("a"), lambda: files.dtype("a")):
        assert f"{path}: tensor a cannot be read" in error_of(use)
