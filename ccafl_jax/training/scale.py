"""A larger global batch, and what follows from it for rates and steps."""

import dataclasses
import math

from ccafl_jax.options import require, require_choice

RULES = ("sqrt", "linear", "none")


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """The batch is a part of the recipe, whatever the devices; this changes it on purpose.

    Attributes:
      batch: factor k of every batch; the classes of a P x K batch become k P.
      rule: factor of the learning rates: `sqrt` k (Adam's gradients are divided by their size, so
        their noise falls with the root of the batch), `linear` k, or `none`. Steps an epoch are
        divided by k, rounded up, so that an epoch sees as many images.
      shard_classes: split memory banks and the classifier over the devices by classes, for sets
        with so many that they crowd the memory of one. Changes no result beyond rounding.
    """

    batch: int = 1
    rule: str = "sqrt"
    shard_classes: bool = False

    def __post_init__(self):
        require(self.batch >= 1, f"batch is {self.batch}, must be a whole factor of 1 or more")
        require_choice("rule", self.rule, RULES)

    def rate(self, value: float) -> float:
        """A learning rate at this batch."""
        factor = {"sqrt": math.sqrt(self.batch), "linear": self.batch, "none": 1.0}[self.rule]
        return value * factor

    def steps(self, count: int) -> int:
        """Steps of an epoch at this batch."""
        return -(-count // self.batch)
