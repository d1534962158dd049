import sys

import numpy as np
import pytest

from ccafl_jax.deploy.exporting import export_model
from ccafl_jax.deploy.loading import load
from ccafl_jax.deploy.onnx import load_onnx
from tests.deploy import tiny


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_it_passes_the_gate_and_runs_with_any_batch(tmp_path, kind):
    pytest.importorskip("jax2onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    bundle, images = tiny.bundle(kind), tiny.pixels(64)
    out = tmp_path / "out"
    rows = export_model(bundle, out, images=images[:5], formats=["orbax", "onnx"])
    assert rows[1].kind == "onnx" and rows[1].cosine > 0.999999
    import onnx

    graph = onnx.load(out / "onnx" / "model.onnx", load_external_data=False).graph
    # The converter repeats a kernel once a token where an einsum holds an ellipsis.
    assert not [node.name for node in graph.node if "einsum_broadcast" in node.output[0]]
    cameras = tiny.cameras_of(bundle, 64)
    expected = load(out / "orbax").embed(images, cameras)
    run = load_onnx(out / "onnx")
    for count in (1, 7, 64):
        chosen = None if cameras is None else cameras[:count].astype(np.int32)
        np.testing.assert_allclose(run(images[:count], chosen), expected[:count], atol=1e-5)


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'ccafl_jax\[onnx\]'"):
        export_model(tiny.bundle("vit"), tmp_path / "out", images=tiny.pixels(1), formats=["onnx"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ImportError, match=r"pip install 'ccafl_jax\[onnx\]'"):
        load_onnx(tmp_path)
