"""Re-identification models from and to the tensor names of published checkpoints."""

import re
from collections.abc import Mapping

import numpy as np

from ccafl_jax.models.clip.config import VisionConfig
from ccafl_jax.models.clip.naming import OPENAI_STEM, OPENAI_TOWER, reid_table
from ccafl_jax.models.clip.weights import UNUSED, position_fits
from ccafl_jax.models.named_tensors import (
    SCALAR,
    batch_norm,
    export,
    fill,
    matches,
    prefixed,
    row,
    where,
)
from ccafl_jax.models.reid import ReIDModel
from ccafl_jax.models.resnet_weights import SEQUENTIAL, resnet_table


def load_reid_tensors(
    model: ReIDModel,
    tensors: Mapping[str, np.ndarray],
    *,
    tower: str = "image_encoder.",
    unused: Mapping[str, str] | None = None,
    stored: VisionConfig | None = None,
) -> dict[str, list[str]]:
    """Fills a re-identification model from the names that published checkpoints use.

    Those are `image_encoder.*`, `gap.p`, `cv_embed`, `bottleneck.*` and, where the neck covers the
    joint space too, `bottleneck_proj.*`. The shifts of the necks must be 0, as they are never
    trained.

    Args:
      model: changed in place.
      tensors: by name, in torch's axis order.
      tower: prefix of the image tower.
      unused: further tensors to pass over: what they are -> regular expression of their names.
      stored: sizes of the image tower that the tensors were made for; None: those of the model.

    Returns:
      What was passed over: what it is -> names.

    Raises:
      ValueError: as `load_clip`.
    """
    joint = model.heads.joint
    unused = {"batch counters": UNUSED["batch counters"], **(unused or {})}
    if not joint:  # published beside the neck that is used, and never trained
        unused["neck of the projection"] = r"bottleneck_proj\..*"
    shifts = [n for n in tensors if re.fullmatch(r"bottleneck(_proj)?\.bias", n)]
    for name in shifts:
        if not matches(name, unused) and np.any(tensors[name] != 0):
            raise ValueError(
                f"{where(tensors, name)} is not 0; the shift of the BN neck is fixed at 0 here"
            )
    unused["shifts of the neck"] = r"bottleneck(_proj)?\.bias"
    table = reid_table(tower=tower, features=model.visual.config.features, joint=joint)
    vision = model.visual.config
    fits = position_fits(stored or vision, vision)
    return fill(model, tensors, table=table, unused=unused, fits=fits)


def load_calr_tensors(model: ReIDModel, tensors: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Fills a re-identification model from the names of models published with CALR.

    Those are `base.*`, `gap.p` and `feat_bn.*`, whose shift must be 0; the classifier of cameras
    is passed over.

    Args:
      model: of a ResNet of ImageNet; changed in place.
      tensors: by name, in torch's axis order.

    Returns:
      What was passed over: what it is -> names.

    Raises:
      ValueError: as `load_clip`.
    """
    if np.any(tensors.get("feat_bn.bias", 0) != 0):
        raise ValueError(
            f"{where(tensors, 'feat_bn.bias')} is not 0; the shift of the BN neck is fixed at 0 "
            "here"
        )
    unused = {
        "batch counters": UNUSED["batch counters"],
        "shifts of the neck": r"feat_bn\.bias",
        "classifier of cameras": r"domain_classifier\..*",
    }
    table = (
        *prefixed(resnet_table(ibn=model.visual.config.ibn, parts=SEQUENTIAL), "visual/", ""),
        row(r"gem/p", r"gap.p", SCALAR),
        *batch_norm("neck", "feat_bn"),
    )
    return fill(model, tensors, table=table, unused=unused)


def load_cclnet_tensors(
    model: ReIDModel, tensors: Mapping[str, np.ndarray], *, stored: VisionConfig | None = None
) -> dict[str, list[str]]:
    """Fills a model of two streams from the names of models published with CCLNet.

    Each of its three modules is a whole CLIP tower, of which the stem of `visible_module.visible`,
    the stem of `thermal_module.thermal` and all but the stem of `base_resnet.base` are used. The
    shift of `bottleneck` must be 0. Prompts, whose number depends on the training set, and the text
    tower are passed over.

    Args:
      model: of a CLIP ResNet; changed in place.
      tensors: by name, in torch's axis order.
      stored: sizes of the image tower that the tensors were made for; None: those of the model.

    Returns:
      What was passed over: what it is -> names.

    Raises:
      ValueError: as `load_clip`.
    """
    if np.any(tensors.get("bottleneck.bias", 0) != 0):
        raise ValueError(
            f"{where(tensors, 'bottleneck.bias')} is not 0; the shift of the BN neck is fixed at 0 "
            "here"
        )
    unused = {
        "batch counters": UNUSED["batch counters"],
        "shifts of the neck": r"bottleneck\.bias",
        "trunks of the stems": r"(visible_module\.visible|thermal_module\.thermal)"
        r"\.(layer\d|attnpool)\..*",
        "stem of the trunk": r"base_resnet\.base\.(conv|bn)\d\..*",
        "prompts": r"prompt_learner\..*",
        "text tower": r"text_encoder\..*",
    }
    vision = model.visual.config
    fit = position_fits(stored or vision, vision)["visual/attnpool/positional_embedding"]
    return fill(
        model,
        tensors,
        table=CCLNET,
        unused=unused,
        fits={"visual/trunk/attnpool/positional_embedding": fit},
    )


CCLNET = (
    *prefixed(OPENAI_STEM, "visual/trunk/stem/", "visible_module.visible."),
    *prefixed(OPENAI_STEM, "visual/infrared/", "thermal_module.thermal."),
    *prefixed(OPENAI_TOWER, "visual/trunk/", "base_resnet.base."),
    *batch_norm("neck", "bottleneck"),
)
"""Names of the parts of CCLNet's models that are used."""


def reid_tensors(model: ReIDModel, *, tower: str = "visual.") -> dict[str, np.ndarray]:
    """The parameters and statistics of a re-identification model, named and ordered as in a file.

    Args:
      model: to be written.
      tower: prefix of the image tower; "visual." is that of OpenAI and open_clip.
    """
    features, joint = model.visual.config.features, model.heads.joint
    return export(model, reid_table(tower=tower, features=features, joint=joint))
