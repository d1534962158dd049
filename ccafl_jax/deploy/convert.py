"""Models published with CLIP-ReID, CCAFL, CALR, TF-CLIP and CCLNet, as models of this library."""

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.forward import abstract_model
from ccafl_jax.deploy.published import (
    TOWER,
    default_preprocess,
    infer_reid_config,
    infer_video_config,
    published_as,
)
from ccafl_jax.deploy.run_folder import write_run
from ccafl_jax.deploy.torch_checkpoint import Checkpoint
from ccafl_jax.models.clip.config import ResNetConfig
from ccafl_jax.models.reid_weights import (
    load_calr_tensors,
    load_cclnet_tensors,
    load_reid_tensors,
)
from ccafl_jax.models.video_weights import load_video_tensors
from ccafl_jax.training.state import split_model

PASSED_OVER = {
    "classifiers": r"classifier(_proj)?\.(weight|bias)",
    "prompts": r"prompt_learner\.(cls_ctx|token_prefix|token_suffix)",
    "text tower": (
        r"text_encoder\.(positional_embedding|text_projection|(ln_final|transformer)\..*)"
    ),
}
"""Parts that retrieval does not use: what they are -> regular expression of their names.

`load_reid_tensors` adds counters of batches, shifts of necks (which must be 0) and, where the
feature does not use it, the neck of the projection.
"""
PASSED_OVER_BY_RESNETS = {"camera embedding (not read by a ResNet)": r"cv_embed"}


@dataclasses.dataclass(frozen=True)
class Converted:
    """A published model.

    Attributes:
      bundle: the model of this library.
      kind: "CCAFL", "CALR", "TF-CLIP", "CCLNet" or "CLIP-ReID".
      passed_over: what of the file was not used: what it is -> names.
    """

    bundle: ModelBundle
    kind: str
    passed_over: dict[str, list[str]]


def convert(
    checkpoint: Checkpoint,
    *,
    image_size: tuple[int, int] = (256, 128),
    stride: int | None = None,
    heads: int | None = None,
    feature: str | None = None,
    activation: str | None = None,
    camera_scale: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Converted:
    """Makes a model of this library from a published checkpoint.

    Args:
      checkpoint: named tensors.
      image_size: this and the next five, see `infer_reid_config`.
      stride: see there.
      heads: see there.
      feature: see there.
      activation: see there.
      camera_scale: see there.
      mean: of the colours, of pixels scaled to 0..1; None takes that of the published
        configurations: 0.5 for ViTs, ImageNet's for ResNets and for TF-CLIP.
      std: likewise.

    Raises:
      ValueError: options that do not fit the model, sizes that cannot be told, tensors that are
        missing, unknown, of another shape or not finite. The message names file and tensor.
    """
    source = checkpoint.source
    try:
        kind = published_as(checkpoint)
        infer = infer_video_config if kind == "TF-CLIP" else infer_reid_config
        config = infer(
            checkpoint,
            tuple(image_size),
            stride=stride,
            heads=heads,
            feature=feature,
            activation=activation,
            camera_scale=camera_scale,
        )
        preprocess = default_preprocess(config, mean=mean, std=std)
        model = abstract_model(config)
        if kind == "TF-CLIP":
            passed_over = load_video_tensors(model, checkpoint)
        elif kind == "CALR":
            passed_over = load_calr_tensors(model, checkpoint)
        elif kind == "CCLNet":
            passed_over = load_cclnet_tensors(model, checkpoint)
        else:
            resnet = isinstance(config.vision, ResNetConfig)
            unused = PASSED_OVER | (PASSED_OVER_BY_RESNETS if resnet else {})
            passed_over = load_reid_tensors(model, checkpoint, tower=TOWER, unused=unused)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if source in message else f"{source}: {message}") from error
    _, params, batch_stats = split_model(model)
    name = pathlib.Path(source).name
    bundle = ModelBundle(
        model=config,
        preprocess=preprocess,
        params=params,
        batch_stats=batch_stats,
        recipe={
            "method": f"{kind} converted from {name}",
            "config": {
                "published_as": kind,
                "checkpoint": name,
                "passed_over": {what: len(names) for what, names in passed_over.items()},
            },
        },
        metrics={},
        source=source,
    )
    return Converted(bundle, kind, passed_over)


def check_out(out: pathlib.Path) -> None:
    """Fails where a run folder cannot be written.

    Raises:
      FileExistsError: `out` holds checkpoints, or is no folder.
    """
    if (out / "checkpoints").exists():
        raise FileExistsError(f"{out} holds checkpoints already; choose another --out")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another --out")


def write_converted(out: pathlib.Path, bundle: ModelBundle) -> pathlib.Path:
    """Writes a run folder for evaluation and export: whole, or not at all.

    Returns:
      The folder of the checkpoint.

    Raises:
      FileExistsError: as `check_out`.
    """
    check_out(out)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    partial = None
    try:
        partial = pathlib.Path(tempfile.mkdtemp(prefix=".converting-", dir=out))
        return write_run(partial, bundle).rename(out / "checkpoints")
    except BaseException:
        if made:
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)
