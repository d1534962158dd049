"""The manifest of an exported folder: what lies there, how it was made, and proof it is whole."""

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Sequence

from ccafl_jax import __version__
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.fingerprints import model_fingerprint
from ccafl_jax.training.checkpoints import digest

FORMAT = 1
NAME = "manifest.json"


def describe(
    bundle: ModelBundle, *, kind: str, dtype: str, packages: Sequence[str] = (), **more: object
) -> dict:
    """Everything of a manifest but the files.

    Args:
      bundle: the model.
      kind: of the folder: "orbax", "safetensors", "stablehlo" or "onnx".
      dtype: of the activations of a function, of the arrays of an archive.
      packages: whose versions matter, beside those of JAX and this library.
      more: what only this kind has to say.
    """
    return {
        "format": FORMAT,
        "kind": kind,
        "fingerprint": fingerprint(bundle),
        "feature_fingerprints": {
            "plain": model_fingerprint(bundle),
            "mirrored": model_fingerprint(bundle, flip=True),
        },
        "model": bundle.model.to_json(),
        "preprocess": bundle.preprocess.to_json(),
        "inputs": input_signature(bundle),
        "features": bundle.model.features,
        "dtype": dtype,
        **more,
        "recipe": bundle.recipe,
        "metrics": bundle.metrics,
        "source": bundle.source,
        "versions": _versions(("jax", "jaxlib", "flax", "numpy", *packages)),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def input_signature(bundle: ModelBundle) -> dict:
    """The arguments of the exported function, by name; "b" is the size of the batch.

    `frames` and `modality` say that an image is one picture, and of which light; recipes for clips
    state theirs there. `codes` are the data set's numbers of the cameras. A model of two streams
    takes 0 (visible) and 1 (infrared) in place of cameras.
    """
    preprocess, cameras = bundle.preprocess, bundle.model.kinds
    images = {
        "dtype": "uint8",
        "shape": ["b", preprocess.height, preprocess.width, 3],
        "channels": "RGB",
        "frames": 1,
        "modality": "visible or infrared" if bundle.model.dual_stream else "visible",
    }
    if not cameras:
        return {"images": images}
    codes = [] if bundle.model.dual_stream else list(bundle.camera_codes)
    return {
        "images": images,
        "cameras": {"dtype": "int32", "shape": ["b"], "below": cameras, "codes": codes},
    }


def fingerprint(bundle: ModelBundle) -> str:
    """sha256 over the sizes, the preprocessing and every array of a model."""
    sizes = [bundle.model.to_json(), bundle.preprocess.to_json()]
    arrays = digest({**bundle.params, **bundle.batch_stats})
    return hashlib.sha256((json.dumps(sizes, sort_keys=True) + arrays).encode()).hexdigest()


def write(folder: pathlib.Path, description: dict) -> None:
    """Writes the manifest with the size and hash of every file that lies in the folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    files = {
        p.relative_to(folder).as_posix(): {"sha256": _sha256(p), "bytes": p.stat().st_size}
        for p in paths
    }
    text = json.dumps(description | {"files": files}, indent=2) + "\n"
    (folder / NAME).write_text(text)


def read(folder: str | pathlib.Path) -> dict:
    """Reads a manifest; its files are not looked at.

    Raises:
      FileNotFoundError: no manifest there.
      ValueError: it cannot be read, or is of another format.
    """
    path = pathlib.Path(folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a folder that export wrote")
    try:
        manifest = json.loads(path.read_text())
        version, _ = manifest["format"], [entry["sha256"] for entry in manifest["files"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no manifest of an export ({type(error).__name__}): export again"
        ) from None
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version}, this version reads {FORMAT}: use the ccafl_jax that "
            "wrote it, or export again"
        )
    return manifest


def verify(folder: str | pathlib.Path, *, needs: Sequence[str] = ()) -> dict:
    """Reads a manifest and checks every file against it.

    Args:
      folder: that was exported.
      needs: files, or folders with files, that must be listed.

    Raises:
      FileNotFoundError: no manifest there, or a file that it lists is missing.
      ValueError: as `read`; or a file is not listed, or not what was written.
    """
    folder = pathlib.Path(folder)
    manifest = read(folder)
    for need in needs:
        if not any(name == need or name.startswith(f"{need}/") for name in manifest["files"]):
            raise ValueError(
                f"{folder / NAME} does not list {need}, which cannot be checked then: export again"
            )
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, the manifest lists it: copy it again")
        if _sha256(file) != entry["sha256"]:
            raise ValueError(
                f"{file} is damaged or was changed, its sha256 is not that of the manifest: copy "
                "it again or export again"
            )
    return manifest


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "ccafl_jax": __version__, **versions}


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
