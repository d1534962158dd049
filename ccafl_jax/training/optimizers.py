"""Optimisers as the published recipes mean them: Adam with coupled L2, rates by group.

The learning rate is an argument of the step, not part of the optimiser state: schedules are
functions of the epoch (`warmup_multistep`, `prompt_cosine`) and a resumed run cannot disagree
with its clock.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax


def coupled_adam(
    weight_decay: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam whose L2 penalty is added to the gradient before the moments, without a rate.

    Source: torch.optim.Adam(weight_decay=...), used by every stage of CCAFL (not AdamW).
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    )


def paused(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the state of `tx` (count and moments) as it is and returns zero updates."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda u: u * 0, updates), state

    return optax.GradientTransformation(tx.init, update)


def label_by_path(paths: Sequence[str], rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Gives every path the label of the first rule whose regex matches it (`re.search`).

    Raises:
      ValueError: a path that no rule covers.
    """
    labels = {}
    for path in paths:
        label = next((name for pattern, name in rules if re.search(pattern, path)), None)
        if label is None:
            raise ValueError(f"no rule covers parameter {path!r}: add one to {list(rules)}")
        labels[path] = label
    return labels


def grouped(
    tx: optax.GradientTransformation, labels: Mapping[str, str], *, active: frozenset[str]
) -> optax.GradientTransformation:
    """`tx` applied to each group of parameters apart; groups not in `active` stand still.

    The state has the same structure whatever is active, so it is carried from phase to phase: a
    group that no active loss reaches keeps its own step count and moments and is not decayed.
    """
    groups = sorted(set(labels.values()))
    unknown = active - set(groups)
    if unknown:
        raise ValueError(f"active groups {sorted(unknown)} are not among {groups}")
    transforms = {name: tx if name in active else paused(tx) for name in groups}
    return optax.partition(transforms, dict(labels))


def apply_scaled(
    params: dict[str, jax.Array],
    updates: dict[str, jax.Array],
    *,
    learning_rate: jax.Array,
    factors: Mapping[str, float],
) -> dict[str, jax.Array]:
    """Params - learning_rate * factor * update, per path (factor 2 for biases, say)."""
    return {
        path: value - (learning_rate * factors.get(path, 1.0) * updates[path]).astype(value.dtype)
        for path, value in params.items()
    }


def bias_factors(paths: Sequence[str], factor: float) -> dict[str, float]:
    """`factor` for every tensor named bias, 1 for the others."""
    return {path: factor if path.rsplit("/", 1)[-1] == "bias" else 1.0 for path in paths}


def warmup_multistep(
    epoch: int,
    *,
    base: float,
    warmup_epochs: int,
    warmup_factor: float,
    milestones: Sequence[int],
    gamma: float,
) -> float:
    """Learning rate of `epoch` (from 0): linear warm-up times gamma per milestone reached.

    Source: the second optimiser of CCAFL and CLIP-ReID: during warm-up the rate is
    base * (factor * (1 - e/W) + e/W); warm-up and milestones multiply.

    Example, of CCAFL's encoder:

    >>> def rate(epoch):
    ...     return warmup_multistep(
    ...         epoch,
    ...         base=3.5e-4,
    ...         warmup_epochs=10,
    ...         warmup_factor=0.01,
    ...         milestones=(40, 50),
    ...         gamma=0.1,
    ...     )
    >>> [float(f"{rate(epoch):.3g}") for epoch in (0, 5, 10, 40, 50)]
    [3.5e-06, 0.000177, 0.00035, 3.5e-05, 3.5e-06]
    """
    scale = gamma ** sum(epoch >= milestone for milestone in milestones)
    if epoch < warmup_epochs:
        alpha = epoch / warmup_epochs
        scale *= warmup_factor * (1 - alpha) + alpha
    return base * scale


def prompt_cosine(
    epoch: int,
    *,
    base: float,
    warmup_from: float,
    warmup_epochs: int,
    minimum: float,
    epochs: int,
) -> float:
    """Learning rate of prompt epoch `epoch`, counted from 1 to `epochs`.

    Source: CLIP-ReID's first stage: linear from `warmup_from` for epochs below `warmup_epochs`,
    then minimum + (base - minimum) (1 + cos(pi * epoch / epochs)) / 2, where the cosine starts at
    epoch 0, not at the end of the warm-up.
    """
    if epoch < warmup_epochs:
        return warmup_from + epoch * (base - warmup_from) / warmup_epochs
    return minimum + 0.5 * (base - minimum) * (1 + math.cos(math.pi * epoch / epochs))
