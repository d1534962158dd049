"""How far a run has come: the part of its state that is not arrays of the model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass
class Progress:
    """What every method keeps; each adds fields of its own.

    Attributes:
      encoder_epochs: epochs of the image encoder that are done.
      zero_shot: figures of the encoder as it came.
      stages: one entry a finished stage, as in the summary.
      part: an epoch that was left in the middle, as `part_of_epoch` makes it; None at its borders.
      skipped: steps that were passed over, as their numbers were not finite.
      val_history: intra-camera mAP of the held-out images at every evaluation of training.
      seconds: spent so far.
    """

    encoder_epochs: int = 0
    zero_shot: dict | None = None
    stages: list = dataclasses.field(default_factory=list)
    part: dict | None = None
    skipped: int = 0
    val_history: list = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def number(self) -> int:
        """Number of the checkpoint."""
        return self.encoder_epochs

    def take_part(self, stage: str) -> tuple[list[dict[str, float]], dict[str, float] | None]:
        """What was done of the epoch that comes next, which is then forgotten.

        Returns:
          Metrics of the steps done, and the scalars of the start of the epoch; an empty list and
          None where the epoch begins.
        """
        part, self.part = self.part, None
        if part is None or part["stage"] != stage:
            return [], None
        return part["metrics"], part["scalars"]

    def next_epochs(self) -> dict[str, int]:
        """First epoch of each log that is still to come."""
        return {"encoder": self.encoder_epochs}

    def words(self) -> str:
        """What is done, for messages."""
        done = " and ".join(f"{count} {name}" for name, count in self.next_epochs().items())
        return f"{done} epochs" + (f" and {len(self.part['metrics'])} steps" if self.part else "")

    def to_json(self) -> dict:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping) -> Self:
        """Inverse of `to_json`."""
        return cls(**values)


def part_of_epoch(
    stage: str, metrics: list[dict[str, float]], scalars: dict[str, float]
) -> dict[str, Any]:
    """An epoch left in the middle, as JSON values.

    Args:
      stage: name of its log.
      metrics: of the steps that are done.
      scalars: figures of the start of the epoch.
    """
    return {"stage": stage, "metrics": metrics, "scalars": scalars}
