"""A TF-CLIP run: a memory of CLIP's features is made once, then clips are trained.

Read `EncoderRun.train` first, which says how any run begins, resumes and ends, then `Run._stages`.
"""

import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.data.clips import Clips, clips_of, cut, segment_means, training_clips
from ccafl_jax.data.records import ReIDDataset, Tracklets, tracklets
from ccafl_jax.data.samplers import plan_groups
from ccafl_jax.methods.epochs import EpochRun, EpochStart
from ccafl_jax.methods.metadata import describe_run
from ccafl_jax.methods.packing import pack_state, unpack_state
from ccafl_jax.methods.progress import Progress
from ccafl_jax.methods.run import Images
from ccafl_jax.methods.tfclip.config import TFCLIPConfig
from ccafl_jax.methods.tfclip.evaluation import score_tracklets
from ccafl_jax.methods.tfclip.phases import (
    Context,
    Phase,
    initial_state,
    learning_rate,
    make_step,
)
from ccafl_jax.methods.tfclip.progress import summarize
from ccafl_jax.models.video import VideoConfig, VideoModel
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.extract import Extractor
from ccafl_jax.training.features import clip_extractor
from ccafl_jax.training.sharding import check_batch, replicate
from ccafl_jax.training.state import split_model

log = logging.getLogger("ccafl_jax")

_PASS = 1_009  # between the seeds of the passes that make up an epoch of many steps


class Run(EpochRun):
    """One training run in one folder.

    Attributes, beside those of all methods:
      items: what is sampled: the training tracklets, or pieces of them.
      labels: int32[items], their identities, numbered from 0 in the order of `pid`.
      tests: the tracklets of the query set, then those of the gallery, as rows of both joined.
    """

    def __init__(
        self,
        config: TFCLIPConfig,
        *,
        dataset: ReIDDataset,
        images: Images,
        model: VideoModel,
        model_config: VideoConfig,
        workdir: pathlib.Path,
    ):
        """Args:
        config: options.
        dataset: records of the training, query and gallery sets, with tracklets.
        images: their images.
        model: with the weights that training starts from.
        model_config: its sizes.
        workdir: the run folder.
        """
        super().__init__(config, dataset=dataset, images=images, workdir=workdir)
        self.model_config = model_config
        self.graphdef, params, batch_stats = split_model(model)
        self.state = self._laid_out(initial_state(self.config, params, batch_stats))
        self.progress = Progress()
        self._kind = self.config.clips.final

    def _check(self) -> None:
        config = self.config
        sampler = config.sampler
        check_batch(sampler.classes * sampler.tracklets, self.mesh, "sampler.classes")
        self.items = training_items(self.dataset, config)
        self.labels = identities(self.items.pid)
        self.tests = tracklets(self.dataset.query.join(self.dataset.gallery))

    def _zero_shot(self) -> None:
        """Makes the memory of the untuned tower, and measures that tower."""
        if self.config.loss.memory:
            memory = {"identities": jnp.asarray(self._build_memory(), jnp.float32)}
            self.state = self._laid_out(self.state.replace(memory=memory))
        super()._zero_shot()

    def _build_memory(self) -> np.ndarray:
        """CLIP-Memory, float[classes, embed_dim]: means over the items of each identity.

        Each item counts alike, whatever its length, and is the mean over its clips; cameras are not
        told apart and nothing is normalised (specification 3.2).
        """
        options = self.config.clips
        clips = clips_of(self.items, options.memory, frames=options.frames, split=options.split)
        of_items = self._means(self.extract_joint, "train", clips, len(self.items))
        return segment_means(of_items, self.labels, int(self.labels.max()) + 1)

    def _stages(self) -> None:
        start, epochs = self.progress.encoder_epochs, self.config.schedule.epochs
        if start < epochs:
            self._train_epochs(start, epochs, ends={epochs: "clips"})

    # An epoch.

    def _phase(self, epoch: int) -> Phase:
        return Phase()

    def _learning_rate(self, epoch: int) -> float:
        return learning_rate(epoch, self.config)

    def _make_step(self, phase: Phase) -> Callable:
        return make_step(
            self.graphdef,
            self.config,
            mesh=self.mesh,
            resident=self.images.resident,
            on_trace=self.traces.append,
        )

    def _start(self, epoch: int, phase: Phase, *, fresh: bool) -> EpochStart:
        """The frames of an epoch. Nothing is measured at its start, whether it is fresh or not."""
        last = epoch + 1 == self.config.schedule.epochs
        self._kind = self.config.clips.final if last else self.config.clips.during
        return EpochStart({}, self._context, self._plan(epoch))

    @functools.cached_property
    def _context(self) -> Context:
        train = self.dataset.train
        context = Context(
            label=jnp.asarray(identities(train.pid)), camid=jnp.asarray(train.camid, jnp.int32)
        )
        return replicate(context, self.mesh)

    def _plan(self, epoch: int) -> np.ndarray:
        """The frames of an epoch's batches, int[steps, clips * frames]."""
        options, steps = self.config.clips, self.config.schedule.iterations
        plans, shown = [self._pass(epoch, 0)], 1
        while sum(map(len, plans)) < steps:
            plans.append(self._pass(epoch, shown))
            shown += 1
        items = np.concatenate(plans)[: steps or None]
        return training_clips(
            self.items,
            items,
            frames=options.frames,
            seed=self.config.seed,
            epoch=epoch,
            split=options.split,
        )

    def _pass(self, epoch: int, number: int) -> np.ndarray:
        """Batches that show each tracklet once at most, int32[steps, clips]."""
        return plan_groups(
            self.labels,
            seed=self.config.seed + _PASS * number,
            epoch=epoch,
            classes_per_batch=self.config.sampler.classes,
            images_per_class=self.config.sampler.tracklets,
        )

    def _shown(self, scalars: dict[str, float]) -> dict[str, float]:
        names = ("accuracy_memory", "accuracy_image", "mAP", "rank1")
        return super()._shown(scalars) | {n: scalars[n] for n in names if n in scalars}

    # Features of clips and tracklets.

    def _extractor(self, method: str, description: str) -> Extractor:
        config = self.config
        return clip_extractor(
            self.graphdef,
            method,
            frames=config.clips.frames,
            mean=config.augment.mean,
            std=config.augment.std,
            batch=config.evaluation.batch,
            mesh=self.mesh,
            description=description,
        )

    @functools.cached_property
    def extract_joint(self) -> Extractor:
        """Extracts what the memory is made of."""
        return self._extractor("joint_means", "memory")

    def _means(self, extractor: Extractor, split: str, clips: Clips, count: int) -> np.ndarray:
        """Means over the clips of each tracklet: float64[count, dim]."""
        values = self._extract(extractor, split, clips.rows)
        return segment_means(np.asarray(values), clips.tracklet, count)

    def evaluate(self) -> dict:
        """Figures of the test tracklets."""
        options = self.config.clips
        clips = clips_of(self.tests, self._kind, frames=options.frames, split=options.split)
        means = self._means(self.extract_f, "test", clips, len(self.tests))
        features = l2_normalize(np.asarray(means, np.float32))
        self._see(features, self.tests.pid, self.tests.camid)
        return self._score(features) | {"clips": self._kind}

    def _test_names(self) -> None:
        return None

    def _score(self, features: jax.Array) -> dict:
        no_match = self.config.evaluation.no_match
        return from_first(
            lambda: score_tracklets(np.asarray(features), self.dataset, no_match=no_match)
        )

    # Checkpoints and summary.

    def _pack(self, *, memory: bool) -> dict[str, Any]:
        """All arrays: the memory is of the untuned tower, and could not be made again."""
        return pack_state(self.state, memory=bool(self.state.memory))

    def _unpack(self, tree: dict[str, Any], progress: dict) -> None:
        self.progress = Progress.from_json(progress)
        self.state = self._laid_out(unpack_state(tree, self.state))

    def _description(self) -> dict:
        return describe_run(
            "tfclip",
            self.asked,
            self.model_config,
            self.dataset,
            self._pixels(),
            workdir=self.workdir,
            training_set=self._training_set,
            classes=self.model_config.classes,
        )

    def _summary(self, seconds: float) -> dict:
        return summarize(
            self.progress,
            self.config,
            dataset=self.dataset.name,
            tracklets=len(self.items),
            seconds=seconds,
        )


def training_items(dataset: ReIDDataset, config: TFCLIPConfig) -> Tracklets:
    """The training tracklets, cut into pieces where the options ask for it.

    Raises:
      ValueError: records without tracklets or identities, or fewer identities than a batch has.
    """
    table, options = tracklets(dataset.train), config.clips
    unknown = int(np.sum(table.pid < 0))
    if unknown:
        raise ValueError(
            f"{unknown} of {len(table)} training tracklets of {dataset.name} have no identity, "
            "which TF-CLIP learns from: leave them out"
        )
    people = len(np.unique(table.pid))
    if people < config.sampler.classes:
        raise ValueError(
            f"{dataset.name} has {people} training identities and a batch takes "
            f"{config.sampler.classes}: lower sampler.classes"
        )
    if options.piece:
        table = cut(table, length=options.piece, step=options.step or options.piece)
    return table


def identities(pid: np.ndarray) -> np.ndarray:
    """Identities numbered from 0 in ascending order, int32[n]."""
    return np.unique(pid, return_inverse=True)[1].astype(np.int32)
