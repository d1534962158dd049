"""A CCAFL run: prompts, then the epochs of stages 2 and 3.

Read `EncoderRun.train` first, which says how any run begins, resumes and ends, then `Run._stages`.
"""

import functools
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.data.labels import IntraCameraLabels, intra_camera_labels
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.methods.ccafl import init_from, memories, prompts
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.model import image_model
from ccafl_jax.methods.ccafl.phases import (
    Context,
    Phase,
    initial_state,
    learning_rate,
    make_step,
    phase_of,
    report_classifier,
)
from ccafl_jax.methods.ccafl.progress import Progress, pack, summarize, unpack
from ccafl_jax.methods.class_texts import make_class_texts
from ccafl_jax.methods.epochs import EpochStart, headline
from ccafl_jax.methods.metadata import class_digest, class_names, describe_run
from ccafl_jax.methods.prompt_stage import PromptRun
from ccafl_jax.methods.run import Images
from ccafl_jax.models.clip import CLIP, Tokenizer
from ccafl_jax.models.prompts import init_prompts, prompt_template, template_embeddings
from ccafl_jax.pseudo_labels.cross_camera import diagnostics
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.layout import with_rows
from ccafl_jax.training.log import format_line
from ccafl_jax.training.sharding import check_batch, replicate
from ccafl_jax.training.state import split_model

log = logging.getLogger("ccafl_jax")

REACH = ("last_distance", "stranger_distance")
"""Figures of an association that may call for a warning."""


class Run(PromptRun):
    """One training run in one folder."""

    def __init__(
        self,
        config: CCAFLConfig,
        *,
        dataset: ReIDDataset,
        images: Images,
        clip: CLIP,
        tokenizer: Tokenizer,
        workdir: pathlib.Path,
        held_out: Records | None = None,
    ):
        """Args:
        config: options.
        dataset: records of the training, query and gallery sets.
        images: their images.
        clip: both towers, at the size of the images.
        tokenizer: of the text tower.
        workdir: the run folder.
        held_out: records of `images.val`; the training set is without them.
        """
        super().__init__(config, dataset=dataset, images=images, workdir=workdir, held_out=held_out)
        template = prompt_template(tokenizer, prefix_tokens=config.prompts.prefix_tokens)
        self._init_models(clip, template)
        self.progress = Progress()
        self._taken_over = False

    def _check(self) -> None:
        config = self.config
        config.association.function()  # a name that cannot be found is told before any work
        check_batch(config.sampler.classes * config.sampler.images, self.mesh, "sampler.classes")
        if "prompts" in config.stages:
            check_batch(config.prompts.batch, self.mesh, "prompts.batch")
        train = self.dataset.train
        self.labels = intra_camera_labels(train.pid, train.camid)
        config.sampler.check_classes(self.num_classes)

    def _init_models(self, clip: CLIP, template) -> None:
        config = self.config
        self.template = template
        self.text_graph, text_params, _ = split_model(clip.text)
        self.text_params = replicate(text_params, self.mesh)
        self.sentence = template_embeddings(text_params["token_embedding"], template)
        cameras = len(self.dataset.camera_codes)
        model, self.model_config = image_model(clip, config, cameras=cameras)
        self.graphdef, params, batch_stats = split_model(model)
        classes = self.num_classes
        key = jax.random.key(config.seed)
        classifier_key, prompt_key = jax.random.split(key)
        classifier = jax.nn.initializers.xavier_uniform()(
            classifier_key, (classes, self.model_config.features)
        )
        rows, _ = memories.table_rows(config, classes, self.mesh)
        initial_prompts = init_prompts(prompt_key, classes, width=self.sentence.shape[-1])
        state = initial_state(config, params, batch_stats, with_rows(classifier, rows))
        prompt_state = prompts.PromptState(
            prompts=initial_prompts,
            opt_state=prompts.prompt_optimizer(config.prompts).init(initial_prompts),
        )
        self.state = self._laid_out(state)
        self.prompt_state = replicate(prompt_state, self.mesh)
        self.class_text: jax.Array | None = None

    @property
    def num_classes(self) -> int:
        """Accumulated (camera, identity) classes."""
        return int(self.labels.cam_of.shape[0])

    def take_over(self) -> None:
        """Takes from `init_from` what it has; `train` sees to it where nothing is resumed.

        Raises:
          FileNotFoundError, ValueError: there is no model, or none that fits.
        """
        if not self.config.init_from or self._taken_over:
            return
        state, prompt_state = init_from.take_over(
            init_from.read_earlier(self.config.init_from, workdir=self.workdir),
            self._description(),
            self.state,
            self.prompt_state,
            held_out=self._held_out_names(),
        )
        self.state = self._laid_out(state)
        self.prompt_state = replicate(prompt_state, self.mesh)
        self._taken_over = True

    def _ready(self) -> None:
        text, stages = self.config.text, self.config.stages
        untrained = "prompts" not in stages and self.class_text is None
        if {"intra", "inter"} & set(stages) and untrained and (text.intra or text.inter):
            raise ValueError(
                "the text losses need trained prompts: run with --stages prompts first (then "
                "--resume), or set text.intra and text.inter to False"
            )

    def _stages(self) -> None:
        if "prompts" in self.config.stages:
            self._train_prompts()
        if {"intra", "inter"} & set(self.config.stages):
            self._train_encoder()

    # Stage 0: the encoder as it came.

    def _zero_shot(self) -> None:
        if self.config.model.calibrate_neck and not self.config.init_from:
            self._calibrate_neck()
        result = self.evaluate()
        result["g"] = self._score(self._extract(self.extract_g, "test"))
        self.progress.zero_shot = result
        for head in ("f", "g"):
            values = result if head == "f" else result["g"]
            start = "as loaded" if self.config.init_from else "zero-shot"
            log.info("%s %s: %s", start, head, format_line(headline(values)))

    # Stage 1.

    def _make_prompt_step(self) -> Callable:
        return prompts.make_prompt_step(
            self.text_graph,
            self.template,
            self.config.prompts,
            mesh=self.mesh,
            skip_nonfinite=self.config.skip_nonfinite > 0,
            on_trace=self.traces.append,
        )

    def _prompt_batches(self, epoch: int, first: int) -> Iterator[tuple]:
        return prompts.batches(
            len(self.dataset.train),
            self.config.prompts,
            self.mesh,
            seed=self.config.seed,
            epoch=epoch,
            first=first,
        )

    def _prompt_context(self, g: jax.Array | np.ndarray) -> prompts.PromptContext:
        context = prompts.PromptContext(
            text_params=self.text_params,
            sentence=self.sentence,
            image_features=g,
            label=jnp.asarray(self.labels.label, jnp.int32),
            camid=jnp.asarray(self.dataset.train.camid, jnp.int32),
            cam_of=jnp.asarray(self.labels.cam_of, jnp.int32),
        )
        return replicate(context, self.mesh)

    def _finish_prompts(self, context: prompts.PromptContext) -> dict[str, float]:
        encode = make_class_texts(self.text_graph, self.template)
        self.class_text = encode(self.text_params, self.sentence, self.prompt_state.prompts)
        top1 = prompts.top1_inside_camera(
            context.image_features, self.class_text, context.label, context.cam_of
        )
        return {"top1_inside_camera": float(top1)}

    # Stages 2 and 3.

    def _train_encoder(self) -> None:
        schedule = self.config.schedule
        border = schedule.border("intra_epochs")
        stop = schedule.epochs if "inter" in self.config.stages else border
        start = self.progress.encoder_epochs
        if "intra" not in self.config.stages and start < border:
            log.warning(
                "stage 2 was not trained in this run folder; stage 3 starts from %s",
                self.config.init_from or "CLIP",
            )
            start = self.progress.encoder_epochs = border
        if start >= stop:
            return
        ends = {schedule.epochs: "inter", min(border, schedule.epochs): "intra"}
        self._train_epochs(start, stop, ends=ends)

    def _phase(self, epoch: int) -> Phase:
        return phase_of(epoch, self.config)

    def _make_step(self, phase: Phase) -> Callable:
        return make_step(
            self.graphdef,
            list(self.state.params),
            phase,
            self.config,
            mesh=self.mesh,
            resident=self.images.resident,
            on_trace=self.traces.append,
        )

    def _start(self, epoch: int, phase: Phase, *, fresh: bool) -> EpochStart:
        scalars, features = {}, None
        if fresh:
            features = self._extract(self.extract_f)
            scalars = self._associate(epoch, phase, features)
            if phase.ical and not self._phase(epoch - 1).ical:
                report_classifier(self.progress.gid_accuracy, self.num_classes)
        context = self._begin(epoch, phase, features)
        return EpochStart(scalars, context, self._plan(epoch, phase))

    def _begin(self, epoch: int, phase: Phase, features: jax.Array | None) -> Context:
        """The tables of an epoch; the memory banks are filled from features, if these are given."""
        texts = self.class_text
        if texts is None:  # no text loss is on
            texts = jnp.zeros((self.num_classes, 1), self.state.classifier.dtype)
        draws = self._draw_instances(epoch)
        context = memories.make_context(
            self.config,
            label=self.labels.label,
            cam_of=self.labels.cam_of,
            class_text=texts,
            clusters=self.progress.clusters,
            draws=draws,
            mesh=self.mesh,
        )
        if features is not None:
            cameras = int(np.max(self.labels.cam_of)) + 1
            memory = memories.make_memory(phase, features, context, draws, cameras=cameras)
            self.state = self._laid_out(self.state.replace(memory=memory))
        return replicate(context, self.mesh)

    def _associate(self, epoch: int, phase: Phase, features: jax.Array) -> dict:
        """Renews the pseudo identities when due; in stage 2 the result is only logged."""
        config = self.config.association
        border = self.config.schedule.border("intra_epochs")
        if phase.stage == "inter" and (epoch - border) % config.every:
            return {}

        def build() -> dict:
            found = memories.associate_features(
                features, self.labels.label, self.labels.cam_of, config
            )
            report = diagnostics(found, self.labels.pid_of, self.labels.cam_of)
            report = {f"association_{key}": float(value) for key, value in report.items()}
            far = {key: found.diagnostics[key] for key in REACH if key in found.diagnostics}
            return {"clusters": np.asarray(found.labels, np.int32), "report": report, "far": far}

        # Near-tied distances may be ordered differently elsewhere: all take the first one's labels.
        built = from_first(build)
        self.progress.clusters = built["clusters"]
        if phase.stage == "inter" and self.progress.clusters.max(initial=-1) < 0:
            log.warning("no class was associated across cameras: stage 3 has nothing to learn")
        if phase.stage == "inter" and epoch in (border, self.config.schedule.epochs - 1):
            _report_reach(**built["far"])
        return built["report"]

    def _draw_instances(self, epoch: int) -> memories.InstanceDraws:
        return memories.instance_draws(self.config, self.labels.label, self.num_classes, epoch)

    def _plan(self, epoch: int, phase: Phase) -> np.ndarray:
        return memories.batch_plan(
            self.config, phase, epoch, self.labels.label, self.progress.clusters
        )

    def _learning_rate(self, epoch: int) -> float:
        return learning_rate(epoch, self.config.optimizer)

    def _note(self, scalars: dict[str, float]) -> None:
        self.progress.gid_accuracy = scalars["gid_accuracy"]

    def _shown(self, scalars: dict[str, float]) -> dict[str, float]:
        shown = {"loss": scalars["total"], "gid_acc": scalars["gid_accuracy"]}
        for key in ("association_clusters", "association_precision", "mAP", "rank1", "val_mAP"):
            if key in scalars:
                shown[key.removeprefix("association_")] = scalars[key]
        return shown

    # Checkpoints and summary.

    def _pack(self, *, memory: bool) -> dict[str, Any]:
        return pack(self.state, self.prompt_state, self.class_text, memory=memory)

    def _unpack(self, tree: dict[str, Any], progress: dict) -> None:
        _, clusters = memories.table_rows(self.config, self.num_classes, self.mesh)
        state, prompt_state, self.class_text = unpack(
            tree, self.state, self.prompt_state, clusters=clusters
        )
        self.state = self._laid_out(state)
        self.prompt_state = replicate(prompt_state, self.mesh)
        self.progress = Progress.from_json(progress)

    @functools.cached_property
    def _class_table(self) -> str:
        return class_digest(self.labels)

    def _names(self, labels: IntraCameraLabels) -> dict[str, list[int]]:
        return class_names(labels, self.dataset.camera_codes)

    def _held_out_names(self) -> list[init_from.Name]:
        if self.held_out is None:
            return []
        labels = intra_camera_labels(self.held_out.pid, self.held_out.camid)
        return init_from.names_of({"class_names": self._names(labels)})

    def _description(self) -> dict:
        return describe_run(
            "ccafl",
            self.asked,
            self.model_config,
            self.dataset,
            self._pixels(),
            workdir=self.workdir,
            training_set=self._training_set,
            classes=self.num_classes,
            class_table=self._class_table,
            class_names=self._names(self.labels),
        )

    def _summary(self, seconds: float) -> dict:
        return summarize(
            self.progress,
            self.config,
            dataset=self.dataset.name,
            classes=self.num_classes,
            train_images=len(self.dataset.train),
            seconds=seconds,
        )


def _report_reach(last_distance: float = np.nan, stranger_distance: float = np.nan) -> None:
    """Warns of links between classes that are no closer than strangers come in one camera."""
    if last_distance >= stranger_distance:
        log.warning(
            "the last pair that was linked across cameras is %.3f apart, and people of one camera "
            "are usually %.3f from the next: strangers are linked, as where cameras share few "
            "people. association.method=greedy_cc_cam refuses some of these links, and a lower "
            "association.rate, mutual or max_distance more; too few links may be worse than some "
            "wrong ones (docs/results.md)",
            last_distance,
            stranger_distance,
        )
