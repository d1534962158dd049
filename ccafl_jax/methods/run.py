"""What the runs of all methods share: images, extraction, evaluation, logs, saves and resuming.

Read `EncoderRun.train` from the top. A method derives its run from `EpochRun`, which adds epochs,
and says what its stages do. Every epoch ends with a checkpoint, and `resume` continues after the
last complete one. Random draws are functions of (seed, epoch or step), so nothing but the state is
carried over.
"""

import abc
import collections
import dataclasses
import functools
import json
import logging
import pathlib
import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.data.decoded import load_images
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.methods import holdout
from ccafl_jax.methods.metadata import check_resumable, describe_checkpoint, training_digest
from ccafl_jax.methods.progress import part_of_epoch
from ccafl_jax.training import snapshots
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.description import check_digest
from ccafl_jax.training.extract import Extractor, Stopped
from ccafl_jax.training.features import Extracted, feature_extractor, query_then_gallery, score
from ccafl_jax.training.inputs import ImageInput, StreamedImages, choose_input
from ccafl_jax.training.layout import layout, rules_of
from ccafl_jax.training.log import RunLog
from ccafl_jax.training.loop import Loop, Watchdog
from ccafl_jax.training.preemption import Preempted
from ccafl_jax.training.processes import is_first
from ccafl_jax.training.saves import Saves
from ccafl_jax.training.sharding import make_mesh, place, replicate
from ccafl_jax.training.storage import open_path, write_text
from ccafl_jax.training.summary import result_table, summary_rows

log = logging.getLogger("ccafl_jax")


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a data set: records to be decoded, or uint8[n, height, width, 3].

    Attributes:
      train: in the order of `dataset.train`.
      test: the query set followed by the gallery.
      val: images held out of training, in the order of `held_out`; None where there are none.
    """

    train: Records | np.ndarray
    test: Records | np.ndarray
    val: Records | np.ndarray | None = None


class EncoderRun(abc.ABC):
    """One training run of an image encoder in one folder.

    What a method has to give is abstract below. Its `__init__` ends with `graphdef` and `state`, of
    the image model and of training, and with what `_stages` needs.

    Attributes:
      asked: the options as given.
      config: those at the batch that `scale.batch` asks for.
      dataset: records of the training, query and gallery sets.
      workdir: the run folder.
      mesh: the devices.
      images, test_images, val_images: inputs; the last is None where nothing is held out.
      held_out: records of the validation images.
      saves: checkpoints.
      progress: how far the run has come.
      traces: names of the steps that were traced.
      loop: how steps are watched, stopped and profiled.
      seen: of the last evaluation, what a snapshot is made of.
      tested: its features; None before there was one.
    """

    def __init__(
        self,
        config: Any,
        *,
        dataset: ReIDDataset,
        images: Images,
        workdir: pathlib.Path,
        held_out: Records | None = None,
    ):
        """Args:
        config: options of the method.
        dataset: records of the training, query and gallery sets.
        images: their images.
        workdir: the run folder.
        held_out: records of `images.val`; the training set is without them.
        """
        self.asked = config
        self.config = config = config.scaled()
        self.dataset = dataset
        self.workdir = workdir
        self.mesh = make_mesh(config.devices)
        self._check()
        self.images = self._input(images.train, config.input.kind)
        # Those of the test set are needed once in a while, and stay on the host.
        self.test_images = self._input(images.test, "host")
        self.val_images = None if held_out is None else self._input(images.val, "host")
        self.held_out = held_out
        best = {"val": "held-out identities", "test": "test set"}.get(config.keep_best)
        self.saves = Saves(
            workdir,
            keep=config.keep_checkpoints,
            best_by=f"mAP of the {best}" if best else "score",
        )
        self.traces: list[str] = []
        self.loop = Loop()
        self.seen: snapshots.Sample | None = None
        self.tested: Extracted | None = None

    # What a method gives.

    @abc.abstractmethod
    def _check(self) -> None:
        """Raises ValueError where the options do not fit; called before any image is read."""

    @abc.abstractmethod
    def _description(self) -> dict:
        """What stays the same in all checkpoints, from `describe_run`."""

    @abc.abstractmethod
    def _pack(self, *, memory: bool) -> dict[str, Any]:
        """The arrays of a checkpoint; those of the memory only where it is to hold them."""

    @abc.abstractmethod
    def _unpack(self, tree: dict[str, Any], progress: dict) -> None:
        """Takes over what `_pack` and the progress gave."""

    @abc.abstractmethod
    def _stages(self) -> None:
        """Trains what is still to be trained."""

    @abc.abstractmethod
    def _summary(self, seconds: float) -> dict:
        """What `summary.json` holds."""

    def take_over(self) -> None:  # noqa: B027 - not all methods have such an option
        """Takes what the options name of an earlier run; `train` calls it where none is resumed."""

    def _ready(self) -> None:  # noqa: B027 - not all methods need anything
        """Raises ValueError where the state does not allow what is to be done."""

    def _zero_shot(self) -> None:
        """Figures of the encoder as it came."""
        self.progress.zero_shot = self.evaluate()

    # Training.

    def train(
        self, *, resume: bool = False, allow_changes: bool = False, loop: Loop | None = None
    ) -> dict:
        """Runs the configured stages and returns the summary.

        Args:
          resume: go on after the last checkpoint, if there is one.
          allow_changes: go on with other options or other code than the run began with.
          loop: how steps are watched, stopped and profiled.

        Raises:
          Preempted: `loop.stop` said so; everything that was done is saved.
        """
        newest = self.saves.newest()
        if resume and newest:
            self._restore(newest, allow_changes=allow_changes)
        elif resume:
            log.info("no checkpoint in %s yet: starting at the beginning", self.workdir)
        elif newest:
            raise FileExistsError(
                f"{self.workdir} already holds checkpoints: continue with --resume, start anew "
                "with --overwrite, or choose another --workdir"
            )
        if not newest:
            self.take_over()
        self._ready()
        self.loop = loop or Loop()
        self.loop.watchdog = Watchdog(
            allowed=self.config.skip_nonfinite,
            skipped=self.progress.skipped,
            last_good=self.saves.words,
        )
        self.log = RunLog(
            self.workdir,
            dataset=self.dataset.name,
            resume_at=self.progress.next_epochs() if resume else None,
        )
        self._seconds_before = self.progress.seconds
        try:
            if self.progress.zero_shot is None:
                self._zero_shot()
                snapshots.keep(self.workdir, snapshots.ZERO_SHOT, self.seen)
            self._stages()
            return self._write_summary()
        finally:
            if self.loop.profile:
                self.loop.profile.close()
            self.log.close()

    def _laid_out(self, state: Any) -> Any:
        """The state on the devices, as the options ask."""
        return place(state, layout(state, self.mesh, rules_of(self.config.scale)))

    # Images and features.

    def _pixels(self) -> PixelFormat:
        """What images become when they are loaded."""
        return PixelFormat(self.config.data.height, self.config.data.width)

    def _kinds(self, records: Records) -> np.ndarray:
        """What the model is told of each image, int[n]: its camera; see `ReIDModel`."""
        return records.camid

    def _input(self, images: Records | np.ndarray, kind: str) -> ImageInput:
        config = self.config
        progress = sys.stderr.isatty()  # no bar in log files
        pixels = self._pixels()
        if kind != "host":
            return choose_input(
                images,
                pixels,
                self.mesh,
                kind=kind,
                share=config.input.share,
                cache=config.data.cache,
                progress=progress,
            )
        if isinstance(images, Records) and (self.images.resident or config.data.cache):
            images = load_images(images, pixels, cache=config.data.cache, progress=progress)
        return StreamedImages(images, self.mesh, pixels=pixels)

    def _extractor(self, method: str, description: str) -> Extractor:
        """An extractor of what `method` of the image model returns; see `feature_extractor`."""
        return feature_extractor(
            self.graphdef,
            method,
            mean=self.config.augment.mean,
            std=self.config.augment.std,
            batch=self.config.evaluation.batch,
            mesh=self.mesh,
            description=description,
        )

    @functools.cached_property
    def extract_f(self) -> Extractor:
        """Extracts retrieval features."""
        return self._extractor("embed", "features")

    @functools.cached_property
    def extract_pooled(self) -> Extractor:
        """Extracts what enters the neck."""
        return self._extractor("pooled", "neck statistics")

    def _calibrate_neck(self, chosen: np.ndarray | None = None) -> None:
        """Sets the neck's running statistics to those of the training images, or of chosen ones."""
        pooled = np.asarray(self._extract(self.extract_pooled, chosen=chosen), np.float64)
        stats = dict(self.state.batch_stats)
        like = stats["neck/mean"]
        stats["neck/mean"] = jnp.asarray(pooled.mean(0), like.dtype)
        stats["neck/var"] = jnp.asarray(pooled.var(0, ddof=1), like.dtype)
        self.state = self.state.replace(batch_stats=replicate(stats, self.mesh))

    def _extract(
        self, extractor: Extractor, split: str = "train", chosen: np.ndarray | None = None
    ) -> jax.Array:
        """Features of "train", "val" or "test" (the query set followed by the gallery).

        Args:
          extractor: of what.
          split: of which images.
          chosen: int[k], rows of the split; None for all.
        """
        if split == "train":
            images, kinds = self.images, self._kinds(self.dataset.train)
        elif split == "val":
            images, kinds = self.val_images, self._kinds(self.held_out)
        else:
            sides = self.dataset.query, self.dataset.gallery
            images, kinds = self.test_images, np.concatenate([self._kinds(x) for x in sides])
        state, stop = self.state, self.loop.should_stop
        try:
            return extractor(
                state.params, state.batch_stats, images, kinds, chosen=chosen, stop=stop
            )
        except Stopped as stopped:
            raise Preempted(f"{stopped}; {self.saves.words()}") from None

    # Evaluation, checkpoints, summary.

    def evaluate(self) -> dict:
        """Metrics of the retrieval feature on the test set, and on the held-out images."""
        features = self._extract(self.extract_f, "test")
        self._see(features, *query_then_gallery(self.dataset))
        result = self._score(features)
        if self.held_out is not None:
            features = self._extract(self.extract_f, "val")
            result["val"] = from_first(lambda: holdout.score_held_out(features, self.held_out))
        return result

    def _see(self, features: jax.Array, pid: np.ndarray, camid: np.ndarray) -> None:
        """Keeps the test features for a report, and of them what a snapshot would need."""
        self.tested = Extracted(np.asarray(features), self._test_names())
        self.seen = snapshots.sample(features, pid, camid, self.dataset.query.pid)

    def _test_names(self) -> list[str] | None:
        """See `Extracted`."""
        return [*self.dataset.query.path, *self.dataset.gallery.path]

    def _score(self, features: jax.Array) -> dict:
        no_match = self.config.evaluation.no_match
        return from_first(lambda: score(features, self.dataset, no_match=no_match))

    def _save(self, result: dict | None = None) -> None:
        """Saves at the border of an epoch, with the figures of its evaluation if there was one."""
        best = None
        if result and self.config.keep_best:
            figures = result["val"] if self.config.keep_best == "val" else result
            best = figures["mAP"]
        self.saves.at_border(self.progress.number, *self._packed(), best=best)

    def _leave(self, stage: str, found: list, scalars: dict, *, memory: bool) -> NoReturn:
        """Saves in the middle of an epoch and ends the run."""
        self.progress.part = part_of_epoch(stage, found, scalars)
        packed = self._packed(memory=memory)
        self.saves.inside_epoch(self.progress.number, *packed)
        raise Preempted(f"saved after {len(found)} steps of an epoch")

    def _packed(self, *, memory: bool = False) -> tuple[dict, dict]:
        """The arrays and the description of a checkpoint."""
        self.progress.seconds = self._seconds_before + self.log.seconds
        self.progress.skipped = self.loop.watchdog.skipped
        description = describe_checkpoint(self._description(), self.progress, self.state)
        return self._pack(memory=memory), description

    @functools.cached_property
    def _training_set(self) -> str:
        return training_digest(self.dataset.train)  # walks over all images, so once a run

    def _restore(self, checkpoints: Checkpoints, *, allow_changes: bool) -> None:
        meta = checkpoints.restore_meta()
        holdout.check_same_hold_out(meta, self.config, str(self.workdir))
        check_resumable(meta, self._description(), self.workdir, allow_changes=allow_changes)
        tree = checkpoints.restore()
        check_digest(meta, tree["params"], tree["batch_stats"], where=str(self.workdir))
        self._unpack(tree, meta["progress"])
        log.info("resumed after %s", self.progress.words())

    def _write_summary(self) -> dict:
        counts = collections.Counter(self.traces)
        log.info("traced: %s", ", ".join(f"{name} {count}" for name, count in counts.items()))
        summary = self._summary(self._seconds_before + self.log.seconds)
        if is_first():
            text = json.dumps(summary, indent=2) + "\n"
            write_text(open_path(self.workdir) / "summary.json", text)
            print(result_table(summary_rows(summary)))
        return summary
