"""Converts PyTorch checkpoints: a trained model of CLIP-ReID, CCAFL, CALR, TF-CLIP or CCLNet, or
weights.

A trained model becomes a run folder for scripts/evaluate.py and scripts/export.py. With
--to-safetensors a pickled state dict, such as that of a CLIP or ResNet, becomes a safetensors file
under its own names; a prefix that all of them carry, such as "module.", is taken off. Pickled files
are read by torch with weights_only=True, so that no code in them runs.
See docs/convert.md.
"""

import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from command import Parser, one_line_errors, start_logging, user_path

if TYPE_CHECKING:
    from ccafl_jax.deploy.convert import Converted
    from ccafl_jax.deploy.torch_checkpoint import Checkpoint
    from ccafl_jax.training.description import ModelConfig

EXAMPLES = """\
examples:
  CCAFL, and CLIP-ReID with a ResNet or a ViT, for 256x128 images
    python scripts/convert_weights.py --checkpoint model_best.pth.tar --out runs/ccafl_market
    python scripts/convert_weights.py --checkpoint ViT-B-16_60.pth --out runs/clipreid_market
  a model trained with a larger input, retrieving after the BN neck
    python scripts/convert_weights.py --checkpoint ViT-B-16_60.pth --out runs/large \\
        --image-size 384 128 --feature neck
  CALR, with a ResNet-50 or an IBN-ResNet-50-a
    python scripts/convert_weights.py --checkpoint model_best.pth.tar --out runs/calr_market
  TF-CLIP, scored by all frames of each tracklet, or by eight frames that are spread over it
    python scripts/convert_weights.py --checkpoint MARS_best.pth --out runs/tfclip_mars
    python scripts/evaluate.py --workdir runs/tfclip_mars --root MARS_DIR --dataset mars
    python scripts/evaluate.py --workdir runs/tfclip_mars --root MARS_DIR --dataset mars \\
        --clips spread
  CCLNet, its models of stage 0 and of stage 2 alike
    python scripts/convert_weights.py --checkpoint model_best.pth --out runs/cclnet_sysu \\
        --image-size 288 144
  a CLIP that is published as a pickled file, to train from
    python scripts/convert_weights.py --checkpoint pytorch_model.bin \\
        --to-safetensors CLIP_DIR/model.safetensors
"""
WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""Where training programs put the state dict in a larger dictionary."""

FIGURES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
"""What a pickled numpy number asks for, such as the best mAP beside published weights."""

MODEL_OPTIONS = (
    "image_size",
    "stride",
    "heads",
    "feature",
    "camera_scale",
    "activation",
    "mean",
    "std",
)


def main() -> None:
    """Parses the arguments and converts."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=user_path,
        help="file of torch.save (.pth, .pt, .tar, .bin) or .safetensors",
    )
    result = parser.add_mutually_exclusive_group(required=True)
    result.add_argument("--out", type=user_path, help="run folder to make of a trained model")
    result.add_argument(
        "--to-safetensors", type=user_path, metavar="FILE", help="safetensors file to make"
    )
    model = parser.add_argument_group("what a file does not say about a trained model")
    model.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="it was trained with (default: 256 128)",
    )
    model.add_argument(
        "--stride", type=int, help="of a ResNet's last stage or of a ViT's patches (default: found)"
    )
    model.add_argument("--heads", type=int, help="of a ViT (default: its width / 64)")
    model.add_argument(
        "--feature",
        choices=("neck", "pooled", "neck_released"),
        help="retrieve by what leaves the BN neck, or by what enters it (default: as published: "
        "neck for CCAFL, pooled for CLIP-ReID and TF-CLIP); neck_released drops what TF-CLIP's "
        "release does there",
    )
    model.add_argument(
        "--camera-scale",
        type=float,
        help="factor of the camera embedding, SIE_COE (default: 1.0, as in CLIP-ReID's commands)",
    )
    model.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="of a ViT (default: quick_gelu, OpenAI's)",
    )
    for name in ("mean", "std"):
        model.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help="of colours from 0 to 1 (default: 0.5 for a ViT, ImageNet's for a ResNet and for "
            "TF-CLIP)",
        )
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in MODEL_OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}
    if arguments.to_safetensors and options:
        parser.error(f"--to-safetensors takes no {sorted(options)}: names and values stay")
    start_logging()
    with one_line_errors():
        if arguments.to_safetensors:
            to_safetensors(arguments.checkpoint, arguments.to_safetensors)
        else:
            to_run_folder(arguments.checkpoint, arguments.out, options)


def to_run_folder(path: pathlib.Path, out: pathlib.Path, options: Mapping[str, Any]) -> None:
    """Converts a trained model and says what was done."""
    from ccafl_jax.deploy.convert import check_out, convert, write_converted
    from ccafl_jax.deploy.torch_checkpoint import Checkpoint
    from ccafl_jax.models.tensor_files import TensorFiles

    check_out(out)
    if path.suffix == ".safetensors":
        with TensorFiles(path) as tensors:
            checkpoint = Checkpoint(tensors, path)
            converted = convert(checkpoint, **options)
    else:
        checkpoint = Checkpoint(read_pickled(path), path)
        converted = convert(checkpoint, **options)
    write_converted(out, converted.bundle)
    report(checkpoint, converted)
    print(f"written; next: python scripts/evaluate.py --workdir {out} --root MARKET_DIR")


def to_safetensors(path: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the tensors of a state dict under their own names, without a prefix."""
    from ccafl_jax.deploy.torch_checkpoint import Checkpoint
    from ccafl_jax.models.tensor_files import TensorFiles, write_tensors

    if out.exists():
        raise FileExistsError(f"{out} exists; choose another file, or remove it first")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent}; make it first")
    if path.suffix == ".safetensors":
        with TensorFiles(path) as tensors:
            checkpoint = Checkpoint(tensors, path)
            if not checkpoint.prefix:
                raise ValueError(
                    f"{path} is a safetensors file already, and its names carry no prefix to take "
                    "off; use it as it is"
                )
            write_tensors(out, dict(checkpoint), metadata={"format": "pt"})
    else:
        checkpoint = Checkpoint(read_pickled(path), path)
        write_tensors(out, dict(checkpoint), metadata={"format": "pt"})
    if checkpoint.prefix:
        print(f"taken off every name: {checkpoint.prefix}")
    print(
        f"{len(checkpoint)} tensors written to {out}; next: place the model's "
        "open_clip_config.json or config.json, and its tokenizer, beside it"
    )


def report(checkpoint: "Checkpoint", converted: "Converted") -> None:
    """Prints what the model is taken to be, and what of the file was not used."""
    config, preprocess = converted.bundle.model, converted.bundle.preprocess
    sizes = ", ".join(f"{k} {v}" for k, v in vars(config.vision).items() if k != "image_size")
    print(f"{converted.kind}: {type(config.vision).__name__.removesuffix('Config')} ({sizes})")
    print(f"feature: {config.features} numbers, {_feature(config)}")
    print(
        f"images: {preprocess.height}x{preprocess.width} by {preprocess.filter}, "
        f"mean {preprocess.mean}, std {preprocess.std}"
    )
    if config.cameras:
        scale = getattr(config, "heads", config).camera_scale
        print(f"camera embedding: {config.cameras} rows, times {scale} (--camera-scale)")
    if checkpoint.prefix:
        print(f"taken off every name: {checkpoint.prefix}")
    passed = [f"{what} ({len(names)})" for what, names in converted.passed_over.items()]
    print(f"passed over: {', '.join(passed) or 'nothing'}")


def _feature(config: "ModelConfig") -> str:
    """What clips or images are retrieved by, in words."""
    if not hasattr(config, "heads"):
        return f"of clips: image, joint and time, {config.feature} (--feature)"
    place = "after" if config.heads.feature == "neck" else "before"
    projection = " and projection" if config.heads.joint else ""
    return f"{config.heads.pooling}{projection}, {place} the BN neck"


def read_pickled(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the state dict in a file of torch.save; nothing that the file contains is run.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: torch is not installed.
      ValueError: another file, a damaged one, or one that needs more than tensors.
    """
    from ccafl_jax.deploy.torch_checkpoint import check_pickled

    check_pickled(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is a pickled file, which only torch reads: pip install 'ccafl_jax[convert]'"
        ) from error
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of old formats; what fails is raised
            torch.serialization.safe_globals([_inert(name) for name in FIGURES]),
        ):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(f"{path}: {_reason(error)}") from error
    return tensors_of(loaded, path)


def tensors_of(loaded: object, path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in what torch.load returned, as arrays; what else is there is printed.

    Raises:
      ValueError: there is none, or it holds something other than tensors.
    """
    if isinstance(loaded, Mapping):
        for name in WRAPPINGS:
            if isinstance(loaded.get(name), Mapping):
                others = sorted(str(other) for other in loaded if other != name)
                if others:
                    print(f"read from {name}; also in the file, not read: {', '.join(others)}")
                loaded = loaded[name]
                break
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__}; expected a state dict, perhaps inside a "
            f"dictionary as one of {WRAPPINGS}"
        )
    strange = [str(name) for name, value in loaded.items() if not hasattr(value, "detach")]
    if strange:
        raise ValueError(
            f"{path}: {len(strange)} entries of the state dict are no tensors, e.g. {strange[:3]}; "
            f"expected a state dict, perhaps inside a dictionary as one of {WRAPPINGS}"
        )
    return {str(name): _array(value, f"{path}: tensor {name}") for name, value in loaded.items()}


def _array(tensor: Any, where: str) -> np.ndarray:
    """A torch tensor as a numpy array of the same dtype."""
    import jax.numpy as jnp

    try:
        tensor = tensor.detach()
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has none of its own
            return tensor.float().numpy().astype(jnp.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{where} cannot be read ({_one_line(error)})") from error


class _Number:
    """Takes the place of a number that is not needed; unpickling it does nothing."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


def _inert(path: str) -> type:
    """A class that torch takes for the global `path` while it unpickles."""
    module, _, name = path.rpartition(".")
    return type(name, (_Number,), {"__module__": module})


def _reason(error: Exception) -> str:
    message = _one_line(error)
    wanted = re.search(r"GLOBAL ([\w.]*\w) ", message)
    if wanted:
        return (
            f"refused, as reading it would call {wanted[1]}, code that it names itself; only "
            "tensors are read: save model.state_dict() where the model was made"
        )
    # Around its own reason torch gives advice, such as to read the file without this safeguard.
    reason = message.rpartition("WeightsUnpickler error: ")[2].partition(" Check the docu")[0]
    return (
        f"torch cannot read it ({type(error).__name__}: {reason[:200]}); fetch it again, or save "
        "model.state_dict() with torch.save where the model was made"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
