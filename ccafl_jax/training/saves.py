"""What a run saves of itself: at the borders of epochs, and inside one that it has to leave."""

import pathlib
from typing import Any

from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.storage import open_path


class Saves:
    """The checkpoints of a run folder.

    Those of the borders are what evaluation and exports read. What is saved inside an epoch lies in
    a folder of its own, only to be resumed: it ends with the next border.

    Attributes:
      borders: numbered by the epochs done.
      inside: one at most, with everything that the rest of the epoch needs.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2, best_by: str = "score"):
        """Args:
        workdir: the run folder.
        keep: how many of the latest borders stay.
        best_by: see `Checkpoints`.
        """
        self._workdir = workdir
        self.borders = Checkpoints(open_path(workdir) / "checkpoints", keep=keep, best_by=best_by)
        self.inside = Checkpoints(open_path(workdir) / "preempted", keep=1)

    def newest(self) -> Checkpoints | None:
        """Where the newest one lies; None where there is none."""
        border = self.borders.latest()
        if self.inside.latest() is not None:
            # One that is left from before a later border was of an epoch that is over.
            if self.inside.restore_meta()["border"] >= (border or 0):
                return self.inside
        return None if border is None else self.borders

    def at_border(self, number: int, tree: Any, meta: dict, *, best: float | None = None) -> None:
        """Saves after an epoch; see `Checkpoints.save`.

        Args:
          number: epochs done.
          tree: nested dictionary of arrays.
          meta: JSON-serialisable description.
          best: score.
        """
        self.borders.save(number, tree, meta, best=best)
        self.inside.remove_all()

    def inside_epoch(self, number: int, tree: Any, meta: dict) -> None:
        """Saves in the middle of the epoch after border `number`; arguments as `at_border`."""
        again = 1 + (self.inside.latest() or 0)
        self.inside.save(again, tree, meta | {"border": number})

    def words(self) -> str:
        """Words that name the last one."""
        number = self.borders.latest()
        if number is None:
            return f"there is no checkpoint in {self._workdir} yet"
        return f"the last checkpoint is {number} in {self._workdir}"
