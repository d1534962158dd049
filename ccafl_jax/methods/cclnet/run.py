"""A CCLNet run: clusters of each modality, their descriptions, and the encoder that learns both.

Read `EncoderRun.train` first, which says how any run begins, resumes and ends, then `Run._stages`.
"""

import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.data.records import INFRARED, Records, ReIDDataset
from ccafl_jax.data.samplers import plan_of_modalities
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.memory import init_centroids
from ccafl_jax.methods.cclnet import label_files, prompts
from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.methods.cclnet.evaluation import score
from ccafl_jax.methods.cclnet.labels import cluster_modalities, clusters_of
from ccafl_jax.methods.cclnet.model import image_model
from ccafl_jax.methods.cclnet.phases import (
    Context,
    Phase,
    initial_state,
    learning_rate,
    make_similarities,
    make_step,
    make_swap,
    phase_of,
)
from ccafl_jax.methods.cclnet.progress import Progress, pack, summarize, unpack
from ccafl_jax.methods.class_texts import make_class_texts
from ccafl_jax.methods.epochs import EpochStart
from ccafl_jax.methods.metadata import describe_run
from ccafl_jax.methods.prompt_stage import PromptRun
from ccafl_jax.methods.run import Images
from ccafl_jax.models.clip import CLIP, Tokenizer
from ccafl_jax.models.dual_stream import MODALITIES
from ccafl_jax.models.prompts import prompt_template, template_embeddings
from ccafl_jax.pseudo_labels.matching import match_similarity
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.layout import padded_rows
from ccafl_jax.training.sharding import check_batch, host_local, replicate
from ccafl_jax.training.state import TrainState, split_model

log = logging.getLogger("ccafl_jax")

SMALLEST_CLUSTERS = 4
"""Images of a cluster in units of `clustering.min_samples`, for the first guess how many clusters
there will be; a guess too high costs little."""


class Run(PromptRun):
    """One training run in one folder."""

    def __init__(
        self,
        config: CCLNetConfig,
        *,
        dataset: ReIDDataset,
        tables: Mapping[str, np.ndarray],
        images: Images,
        clip: CLIP,
        tokenizer: Tokenizer,
        workdir: pathlib.Path,
    ):
        """Args:
        config: options.
        dataset: records of the training set and of all test images.
        tables: of the data set, for official draws of the gallery.
        images: their images.
        clip: both towers, at the size of the images, with the weights that stages 0 and 2 start
          from.
        tokenizer: of the text tower.
        workdir: the run folder.
        """
        super().__init__(config, dataset=dataset, images=images, workdir=workdir)
        self.tables = tables
        self.templates = {
            name: prompt_template(tokenizer, text=text) for name, text in prompts.SENTENCES.items()
        }
        self.text_graph, text_params, _ = split_model(clip.text)
        self.text_params = replicate(text_params, self.mesh)
        self.sentences = {
            name: template_embeddings(text_params["token_embedding"], template)
            for name, template in self.templates.items()
        }
        model, self.model_config = image_model(clip, seed=config.seed)
        self.graphdef, *arrays = split_model(model)
        # On the host: a step consumes what it is given, and both stages start from these.
        self._initial = jax.device_get(arrays)
        self.state = self._fresh_state()
        self.prompt_state: prompts.PromptState | None = None
        self.class_text: dict[str, np.ndarray | jax.Array] = {}
        self.progress = Progress()

    def _check(self) -> None:
        config = self.config
        modality = self.dataset.train.modality
        self.infrared = np.zeros(len(self.dataset.train), bool)
        if modality is not None:
            self.infrared = modality == INFRARED
        counts = [int(np.sum(self.infrared == side)) for side in (False, True)]
        if not all(counts):
            raise ValueError(
                f"{self.dataset.root} has {counts[0]} visible and {counts[1]} infrared images to "
                "train on; both are needed"
            )
        batch = 2 * config.sampler.classes * config.sampler.images
        check_batch(batch, self.mesh, "sampler.classes")
        if "prompts" in config.stages:
            check_batch(2 * config.prompts.batch, self.mesh, "prompts.batch")

    def _ready(self) -> None:
        config, progress = self.config, self.progress
        later = {"prompts", "train"} & set(config.stages)
        if not later or not config.text.weight:
            return
        if config.text.labels and not len(progress.text_labels):
            read = from_first(lambda: label_files.read(config.text.labels, self.dataset))
            progress.text_labels = np.asarray(read, np.int32)
        before = progress.encoder_epochs < config.schedule.prepare_epochs
        if "prepare" not in config.stages and before and not len(progress.text_labels):
            raise ValueError(
                "descriptions need the clusters of stage 0: run with --stages prepare first (then "
                "--resume), name earlier ones by text.labels, or set text.weight to 0"
            )
        if "train" in config.stages and "prompts" not in config.stages and not self.class_text:
            raise ValueError(
                "the text losses need trained prompts: run with --stages prompts first (then "
                "--resume), or set text.weight to 0"
            )

    def _stages(self) -> None:
        stages, first = self.config.stages, self.config.schedule.prepare_epochs
        if "prepare" in stages:
            self._train(first, "prepare")
        self._keep_labels()
        if "prompts" in stages and self.config.text.weight:
            self._train_prompts()
        if "train" in stages:
            self.progress.encoder_epochs = max(self.progress.encoder_epochs, first)
            self._train(self.config.schedule.epochs, "train")

    def _zero_shot(self) -> None:
        self._start_anew()
        super()._zero_shot()

    def _fresh_state(self) -> TrainState:
        return self._laid_out(initial_state(self.config, *map(dict, self._initial)))

    def _start_anew(self) -> None:
        """Takes CLIP's weights, with the neck's statistics of the training images."""
        self.state = self._fresh_state()
        if self.config.model.calibrate_neck:
            self._calibrate_neck()

    # Images and figures.

    def _pixels(self) -> PixelFormat:
        return PixelFormat(self.config.data.height, self.config.data.width, "lanczos")

    def _kinds(self, records: Records) -> np.ndarray:
        return records.modality.astype(np.int32)

    def _score(self, features: jax.Array) -> dict:
        options = self.config.evaluation
        return from_first(lambda: score(features, self.dataset, options, tables=self.tables))

    # Stages 0 and 2.

    def _train(self, stop: int, stage: str) -> None:
        """The epochs up to `stop` that are still to come."""
        progress = self.progress
        start = progress.encoder_epochs
        if start >= stop:
            return
        fresh = start in (0, self.config.schedule.prepare_epochs)
        if fresh and (progress.part is None or progress.part["stage"] != "encoder"):
            self._start_anew()
        self._train_epochs(start, stop, ends={stop: stage})

    def _phase(self, epoch: int) -> Phase:
        return phase_of(epoch, self.config)

    def _learning_rate(self, epoch: int) -> float:
        return learning_rate(epoch, self.config)

    def _start(self, epoch: int, phase: Phase, *, fresh: bool) -> EpochStart:
        scalars = self._cluster() if fresh else {}
        return EpochStart(scalars, self._context(phase), self._plan())

    def _cluster(self) -> dict[str, float]:
        """Clusters the images of each modality and fills the memories.

        Returns:
          Figures for the log.
        """
        features = self._extract(self.extract_f)
        options, pid = self.config.clustering, self.dataset.train.pid
        built = from_first(lambda: cluster_modalities(features, self.infrared, pid, options))
        self.progress.labels = np.asarray(built["labels"], np.int32)
        self._grow_memory()
        memory = {}
        for side, name in enumerate(MODALITIES):
            rows = np.flatnonzero(self.infrared == bool(side))
            label = jnp.asarray(self.progress.labels[rows])
            memory[name] = init_centroids(features[rows], label, self.progress.rows[name])
        self.state = self._laid_out(self.state.replace(memory=memory))
        return {key: float(value) for key, value in built["report"].items()}

    def _grow_memory(self) -> None:
        """Makes room for the clusters in force: powers of two, as every size is compiled anew."""
        rows = self.progress.rows
        for side, (name, count) in enumerate(
            clusters_of(self.progress.labels, self.infrared).items()
        ):
            images = int(np.sum(self.infrared == bool(side)))
            guess = images // (SMALLEST_CLUSTERS * self.config.clustering.min_samples)
            needed = max(count, guess, rows.get(name, 1))
            size = 1 << (needed - 1).bit_length()
            if name in rows and size > rows[name]:
                log.info("%d %s clusters: their memory grows to %d rows", count, name, size)
            rows[name] = padded_rows(size, self.mesh) if self.config.scale.shard_classes else size

    def _context(self, phase: Phase) -> Context:
        progress = self.progress
        counts = clusters_of(progress.labels, self.infrared)
        valid = {name: jnp.arange(progress.rows[name]) < counts[name] for name in MODALITIES}
        context = Context(
            label=jnp.asarray(progress.labels, jnp.int32),
            cluster_valid=valid,
            text_label=jnp.asarray(progress.text_labels if phase.text else progress.labels),
            class_text=dict(self.class_text) if phase.text else {},
        )
        return replicate(context, self.mesh)

    def _plan(self) -> np.ndarray:
        """The images of an epoch's batches, int[steps, batch]."""
        labels, sampler = self.progress.labels, self.config.sampler
        labelled = max(int(np.sum((labels >= 0) & (self.infrared == side))) for side in (0, 1))
        steps = self.config.schedule.iterations
        return plan_of_modalities(
            labels,
            self.infrared,
            # Labels change every epoch, and with them the stream starts anew.
            seed=self.config.seed + 1_000_003 * (self.progress.number + 1),
            steps=steps or labelled // (sampler.classes * sampler.images) + 1,
            classes_per_batch=sampler.classes,
            images_per_class=sampler.images,
            draws=sampler.draws,
        )

    def _make_step(self, phase: Phase) -> Callable:
        step = self._contrast_step(phase.text)
        if not phase.swap:
            return step

        def with_swap(state, context, images, rows, rate):
            state, metrics = step(state, context, images, rows, rate)
            partners = self._match(state.memory, context)
            memory = self._swap(state.memory, context.label, rows, partners)
            return state.replace(memory=memory), metrics

        return with_swap

    @functools.cache  # noqa: B019 - a run lives as long as its steps
    def _contrast_step(self, text: bool) -> Callable:
        return make_step(
            self.graphdef,
            list(self.state.params),
            self.config,
            text=text,
            mesh=self.mesh,
            resident=self.images.resident,
            on_trace=self.traces.append,
        )

    @functools.cached_property
    def _swap(self) -> Callable:
        return make_swap(self.config, mesh=self.mesh, on_trace=self.traces.append)

    @functools.cached_property
    def _similarities(self) -> Callable:
        return make_similarities(self.mesh)

    def _match(self, memory: dict[str, jax.Array], context: Context) -> np.ndarray:
        """The infrared partner of each visible prototype, assigned on the host."""
        similarity = host_local(self._similarities(memory))
        valid = [host_local(context.cluster_valid[name]) for name in MODALITIES]
        least = self.config.swap.min_similarity
        found = from_first(
            lambda: match_similarity(similarity, *valid, min_similarity=least).infrared_of
        )
        return np.asarray(found, np.int32)

    def _shown(self, scalars: dict[str, float]) -> dict[str, float]:
        keys = ("clusters_visible", "clusters_infrared", "matching_precision", "mAP", "rank1")
        return super()._shown(scalars) | {key: scalars[key] for key in keys if key in scalars}

    # Stage 1.

    def _keep_labels(self) -> None:
        """Keeps and writes the clusters that stage 0 ended with."""
        progress = self.progress
        done = progress.encoder_epochs == self.config.schedule.prepare_epochs
        if done and len(progress.labels) and not len(progress.text_labels):
            progress.text_labels = progress.labels.copy()
            from_first(lambda: label_files.write(self.workdir, self.dataset, progress.text_labels))

    def _start_prompts(self) -> None:
        self._start_anew()
        self.prompt_state = self._fresh_prompts()

    def _fresh_prompts(self) -> prompts.PromptState:
        clusters = clusters_of(self.progress.text_labels, self.infrared)
        width = self.sentences["visible"].shape[-1]
        state = prompts.initial_prompts(
            self.config.prompts, clusters, width=width, seed=self.config.seed
        )
        return replicate(state, self.mesh)

    def _make_prompt_step(self) -> Callable:
        return prompts.make_prompt_step(
            self.text_graph,
            self.templates,
            self.config.prompts,
            mesh=self.mesh,
            skip_nonfinite=self.config.skip_nonfinite > 0,
            on_trace=self.traces.append,
        )

    def _prompt_batches(self, epoch: int, first: int) -> Iterator[tuple]:
        return prompts.batches(
            self.progress.text_labels,
            self.infrared,
            self.config.prompts,
            self.mesh,
            seed=self.config.seed,
            epoch=epoch,
            first=first,
        )

    def _prompt_context(self, g: jax.Array | np.ndarray) -> prompts.PromptContext:
        context = prompts.PromptContext(
            text_params=self.text_params,
            sentences=self.sentences,
            image_features=g,
            label=jnp.asarray(self.progress.text_labels, jnp.int32),
        )
        return replicate(context, self.mesh)

    def _finish_prompts(self, context: prompts.PromptContext) -> dict[str, float]:
        self.class_text = {
            name: make_class_texts(self.text_graph, template)(
                self.text_params, self.sentences[name], self.prompt_state.prompts[name]
            )
            for name, template in self.templates.items()
        }
        return {}

    # Checkpoints and summary.

    def _pack(self, *, memory: bool) -> dict[str, Any]:
        return pack(self.state, self.prompt_state, self.class_text, memory=memory)

    def _unpack(self, tree: dict[str, Any], progress: dict) -> None:
        self.progress = Progress.from_json(progress)
        prompt_state = self._fresh_prompts() if "prompts" in tree else None
        state, prompt_state, self.class_text = unpack(
            tree, self.state, prompt_state, rows=self.progress.rows
        )
        self.state = self._laid_out(state)
        self.prompt_state = None if prompt_state is None else replicate(prompt_state, self.mesh)

    def _description(self) -> dict:
        return describe_run(
            "cclnet",
            self.asked,
            self.model_config,
            self.dataset,
            self._pixels(),
            workdir=self.workdir,
            training_set=self._training_set,
        )

    def _summary(self, seconds: float) -> dict:
        return summarize(
            self.progress,
            self.config,
            dataset=self.dataset.name,
            train_images=len(self.dataset.train),
            seconds=seconds,
        )
