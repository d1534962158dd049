"""ONNX, through the converter jax2onnx: preprocessing inside, the batch free, weights as constants.

The converter and the runtime are an optional extra: `pip install 'ccafl_jax[onnx]'`.
"""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.deploy import manifest
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.forward import all_arrays, embed_function

MODEL = "model.onnx"


def write_onnx(folder: pathlib.Path, bundle: ModelBundle) -> None:
    """Writes model.onnx (large weights in a file beside it) and the manifest, in float32.

    Raises:
      ImportError: without the extra.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    arrays = {path: jnp.asarray(x) for path, x in all_arrays(bundle).items()}
    embed = embed_function(bundle.model, bundle.preprocess)
    size = (bundle.preprocess.height, bundle.preprocess.width)
    inputs = {"images": jax.ShapeDtypeStruct(("b", *size, 3), jnp.uint8)}
    if bundle.model.cameras:
        inputs["cameras"] = jax.ShapeDtypeStruct(("b",), jnp.int32)
    with _quiet("onnx_ir"):
        jax2onnx.to_onnx(
            lambda *inputs: embed(arrays, *inputs),
            list(inputs.values()),
            model_name="embed",
            input_names=list(inputs),
            output_names=["features"],
            return_mode="file",
            output_path=str(folder / MODEL),
        )
    for path in folder.iterdir():
        path.chmod(0o644)  # the converter makes files that only their owner may read
    packages = ("jax2onnx", "onnx", "onnxruntime")
    about = manifest.describe(bundle, kind="onnx", dtype="float32", packages=packages)
    manifest.write(folder, about)


def load_onnx(folder: pathlib.Path) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
    """The function of an exported folder, run by onnxruntime on the CPU.

    Raises:
      FileNotFoundError, ValueError: a file is missing or was changed.
      ImportError: without the extra.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    manifest.verify(folder, needs=(MODEL,))
    session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, cameras: np.ndarray | None) -> np.ndarray:
        inputs = {"images": images} if cameras is None else {"images": images, "cameras": cameras}
        return session.run(["features"], inputs)[0]

    return run


_INSTALL = "ONNX needs jax2onnx and onnxruntime: pip install 'ccafl_jax[onnx]'"


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hides the warnings of a library; the result is compared with the model's anyway."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
