"""A CCAFL run: the three stages, evaluation, logs, checkpoints and the summary.

Read `Run.train` from the top: zero-shot figures, prompts, then the epochs of stages 2 and 3. Every
epoch ends with a checkpoint, and `resume` continues after the last complete one. Random draws are
functions of (seed, epoch or step), so nothing but the state has to be carried over.
"""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ccafl_jax.data.records import ReIDDataset, intra_camera_labels
from ccafl_jax.data.samplers import plan, shuffled_batches
from ccafl_jax.memory import draw_instances
from ccafl_jax.methods.ccafl import memories, prompts
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.metadata import check_resumable, describe_checkpoint, describe_run
from ccafl_jax.methods.ccafl.model import image_model
from ccafl_jax.methods.ccafl.phases import (
    Context,
    Phase,
    initial_state,
    make_step,
    phase_of,
)
from ccafl_jax.methods.ccafl.progress import Progress, pack, unpack
from ccafl_jax.models.clip import CLIP, Tokenizer
from ccafl_jax.models.prompts import init_prompts, prompt_template, template_embeddings
from ccafl_jax.pseudo_labels.cross_camera import diagnostics
from ccafl_jax.report.summary import result_table, summary_rows, write_json
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.description import check_digest
from ccafl_jax.training.extract import Extractor
from ccafl_jax.training.features import feature_extractor, query_then_gallery, score
from ccafl_jax.training.log import RunLog, format_line
from ccafl_jax.training.optimizers import prompt_cosine, warmup_multistep
from ccafl_jax.training.sharding import check_batch, make_mesh, replicate, shard_rows
from ccafl_jax.training.state import split_model

log = logging.getLogger("ccafl_jax")


@dataclasses.dataclass(frozen=True)
class Images:
    """Decoded images of a data set: uint8[n, height, width, 3] for training and for testing.

    Attributes:
      train: in the order of `dataset.train`.
      test: the query set followed by the gallery.
    """

    train: np.ndarray
    test: np.ndarray


class Run:
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
    ):
        """Args:
        config: options.
        dataset: records of the training, query and gallery sets.
        images: their pixels.
        clip: both towers, at the size of the images.
        tokenizer: of the text tower.
        workdir: the run folder.
        """
        self.config = config
        self.dataset = dataset
        self.workdir = workdir
        self.mesh = make_mesh(config.devices)
        check_batch(config.sampler.classes * config.sampler.images, self.mesh)
        self.labels = intra_camera_labels(dataset.train.pid, dataset.train.camid)
        self.images = replicate(images.train, self.mesh)
        self.test_images = images.test

        template = prompt_template(tokenizer, prefix_tokens=config.prompts.prefix_tokens)
        self._init_models(clip, template)
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        self.progress = Progress()
        self.traces: list[str] = []

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
        initial_prompts = init_prompts(prompt_key, classes, width=self.sentence.shape[-1])
        self._build_extractors()
        state = initial_state(config, params, batch_stats, classifier)
        prompt_state = prompts.PromptState(
            prompts=initial_prompts,
            opt_state=prompts.prompt_optimizer(config.prompts).init(initial_prompts),
        )
        self.state = replicate(state, self.mesh)
        self.prompt_state = replicate(prompt_state, self.mesh)
        self.class_text: jax.Array | None = None

    def _build_extractors(self) -> None:
        def extractor(method: str, description: str):
            return feature_extractor(
                self.graphdef,
                method,
                mean=self.config.augment.mean,
                std=self.config.augment.std,
                batch=self.config.evaluation.batch,
                mesh=self.mesh,
                description=description,
            )

        self.extract_f = extractor("embed", "features")
        self.extract_g = extractor("image_features", "joint features")
        self.extract_pooled = extractor("pooled", "neck statistics")

    def _extract(self, extractor: Extractor, *, test: bool = False) -> jax.Array:
        """Features of the training images, or of the query set followed by the gallery."""
        images = self.test_images if test else self.images
        camid = query_then_gallery(self.dataset)[1] if test else self.dataset.train.camid
        return extractor(self.state.params, self.state.batch_stats, images, camid)

    @property
    def num_classes(self) -> int:
        """Accumulated (camera, identity) classes."""
        return int(self.labels.cam_of.shape[0])

    def train(self, *, resume: bool = False) -> dict:
        """Runs the configured stages and returns the summary."""
        started = self.checkpoints.latest() is not None
        if resume and started:
            self._restore()
        elif resume:
            log.info("nothing to resume in %s: starting anew", self.workdir)
        elif started:
            raise FileExistsError(
                f"{self.workdir} already holds checkpoints: continue with --resume, start anew "
                "with --overwrite, or choose another --workdir"
            )
        if {"intra", "inter"} & set(self.config.stages):
            self._check_texts()
        self.log = RunLog(self.workdir, resume_at=self.progress.next_epochs() if resume else None)
        self._seconds_before = self.progress.seconds
        if self.progress.zero_shot is None:
            self._zero_shot()
        if "prompts" in self.config.stages:
            self._train_prompts()
        if {"intra", "inter"} & set(self.config.stages):
            self._train_encoder()
        summary = self._write_summary()
        self.log.close()
        return summary

    # Stage 0: the encoder as it came.

    def _zero_shot(self) -> None:
        if self.config.model.calibrate_neck:
            self._calibrate_neck()
        result = self.evaluate()
        result["g"] = self._score(self._extract(self.extract_g, test=True))
        self.progress.zero_shot = result
        for head in ("f", "g"):
            values = result if head == "f" else result["g"]
            log.info("zero-shot %s: %s", head, format_line(_headline(values)))

    def _calibrate_neck(self) -> None:
        """Sets the neck's running statistics to those of the training images."""
        pooled = self._extract(self.extract_pooled)
        pooled = np.asarray(pooled, np.float64)
        stats = dict(self.state.batch_stats)
        like = stats["neck/mean"]
        stats["neck/mean"] = jnp.asarray(pooled.mean(0), like.dtype)
        stats["neck/var"] = jnp.asarray(pooled.var(0, ddof=1), like.dtype)
        self.state = self.state.replace(batch_stats=replicate(stats, self.mesh))

    # Stage 1.

    def _train_prompts(self) -> None:
        config, start = self.config.prompts, self.progress.prompt_epochs
        if start < config.epochs:
            clock = time.monotonic()
            context = self._prompt_context()
            loss = self._prompt_epochs(start, context)
            self._finish_prompts(context, loss, clock)

    def _prompt_epochs(self, start: int, context: prompts.PromptContext) -> float:
        """Trains from epoch `start`; returns the mean loss of the last epoch."""
        config = self.config.prompts
        step = prompts.make_prompt_step(
            self.text_graph, self.template, config, on_trace=self.traces.append
        )
        bar = tqdm(
            total=config.epochs,
            initial=start,
            desc="prompts",
            unit="epoch",
            leave=False,
            disable=None,
        )
        for epoch in range(start, config.epochs):
            rate = np.asarray(self._prompt_rate(epoch), self.prompt_state.prompts.dtype)
            rows, valid = shuffled_batches(
                len(self.labels.label), seed=self.config.seed, epoch=epoch, batch=config.batch
            )
            found = []
            for batch_rows, batch_valid in zip(rows, valid, strict=True):
                self.prompt_state, metrics = step(
                    self.prompt_state, context, batch_rows, batch_valid, rate
                )
                found.append(metrics)
            means = _mean_metrics(found) | {"learning_rate": float(rate)}
            self.log.write("prompts", epoch, means)
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            bar.update()
            self.progress.prompt_epochs = epoch + 1
            last = epoch + 1 == config.epochs
            if not last:  # the last one is saved with the texts
                self._save()
        bar.close()
        return means["loss"]

    def _prompt_rate(self, epoch: int) -> float:
        config = self.config.prompts
        return prompt_cosine(
            epoch + 1,
            base=config.base_lr,
            warmup_from=config.warmup_from,
            warmup_epochs=config.warmup_epochs,
            minimum=config.min_lr,
            epochs=config.epochs,
        )

    def _prompt_context(self) -> prompts.PromptContext:
        g = self._extract(self.extract_g)
        context = prompts.PromptContext(
            text_params=self.text_params,
            sentence=self.sentence,
            image_features=g,
            label=jnp.asarray(self.labels.label, jnp.int32),
            camid=jnp.asarray(self.dataset.train.camid, jnp.int32),
            cam_of=jnp.asarray(self.labels.cam_of, jnp.int32),
        )
        return replicate(context, self.mesh)

    def _finish_prompts(self, context: prompts.PromptContext, loss: float, clock: float) -> None:
        encode = prompts.make_class_texts(self.text_graph, self.template)
        self.class_text = encode(self.text_params, self.sentence, self.prompt_state.prompts)
        top1 = prompts.top1_inside_camera(
            context.image_features, self.class_text, context.label, context.cam_of
        )
        learned = {"loss": loss, "top1_inside_camera": float(top1)}
        seconds = time.monotonic() - clock
        log.info("prompts: %s", format_line(learned | {"seconds": seconds}))
        # The image encoder is untouched, so the figures are still those it came with.
        figures = {key: value for key, value in self.progress.zero_shot.items() if key != "g"}
        self.progress.stages.append({"name": "prompts", **learned, **figures, "seconds": seconds})
        self._save()

    # Stages 2 and 3.

    def _train_encoder(self) -> None:
        schedule = self.config.schedule
        border = schedule.border("intra_epochs")
        stop = schedule.epochs if "inter" in self.config.stages else border
        start = self.progress.encoder_epochs
        if "intra" not in self.config.stages and start < border:
            log.warning("stage 2 was not trained in this run folder; stage 3 starts from CLIP")
            start = self.progress.encoder_epochs = border
        if start >= stop:
            return
        steps: dict[Phase, Callable] = {}
        bar = tqdm(
            total=(stop - start) * schedule.iterations,
            desc="training",
            unit="step",
            leave=False,
            disable=None,  # no bar where nobody watches; the epoch lines remain
        )
        clock = time.monotonic()
        for epoch in range(start, stop):
            phase = phase_of(epoch, self.config)
            if phase not in steps:
                steps[phase] = make_step(
                    self.graphdef,
                    list(self.state.params),
                    phase,
                    self.config,
                    on_trace=self.traces.append,
                )
            scalars = self._encoder_epoch(epoch, phase, steps[phase], bar)
            self.progress.encoder_epochs = epoch + 1
            ends = {border: "intra", schedule.epochs: "inter"}.get(epoch + 1)
            every = self.config.evaluation.every
            if ends or (every and (epoch + 1) % every == 0):
                result = self.evaluate()
                scalars |= {key: result[key] for key in ("mAP", "rank1", "same_camera_share")}
                if ends:
                    seconds = time.monotonic() - clock
                    clock = time.monotonic()
                    measured = {"checkpoint": self.progress.number, "seconds": seconds}
                    self.progress.stages.append({"name": ends, **result, **measured})
            self.progress.gid_accuracy = scalars["gid_accuracy"]
            self.log.write("encoder", epoch, scalars)
            tqdm.write(f"epoch {epoch + 1}/{schedule.epochs} {phase.name}: " + _epoch_line(scalars))
            self._save()
        bar.close()

    def _check_texts(self) -> None:
        text, stages = self.config.text, self.config.stages
        if "prompts" not in stages and self.class_text is None and (text.intra or text.inter):
            raise ValueError(
                "the text losses need trained prompts: run with --stages prompts first (then "
                "--resume), or set text.intra and text.inter to False"
            )

    def _encoder_epoch(self, epoch: int, phase: Phase, step: Callable, bar: tqdm) -> dict:
        config = self.config
        features = self._extract(self.extract_f)
        scalars = self._associate(epoch, phase, features)
        if phase.ical and not phase_of(epoch - 1, config).ical:
            self._report_classifier()
        texts = self.class_text
        if texts is None:  # no text loss is on
            texts = jnp.zeros((self.num_classes, 1), self.state.classifier.dtype)
        draws = self._draw_instances(epoch)
        context = memories.make_context(
            config,
            label=self.labels.label,
            cam_of=self.labels.cam_of,
            class_text=texts,
            clusters=self.progress.clusters,
            draws=draws,
        )
        memory = memories.make_memory(phase, features, context, draws)
        context, memory = replicate((context, memory), self.mesh)
        self.state = self.state.replace(memory=memory)
        rate = np.asarray(self._learning_rate(epoch), self.state.classifier.dtype)
        found = []
        for rows in self._plan(epoch, phase, context):
            self.state, metrics = step(
                self.state, context, self.images, shard_rows(rows, self.mesh), rate
            )
            found.append(metrics)
            bar.update()
        means = _mean_metrics(found)
        if not np.isfinite(means["total"]):
            raise FloatingPointError(
                f"the loss of epoch {epoch + 1} is {means['total']}: lower optimizer.base_lr, or "
                "resume from the last checkpoint with another seed"
            )
        return means | scalars | {"learning_rate": float(rate)}

    def _associate(self, epoch: int, phase: Phase, features: jax.Array) -> dict:
        """Renews the pseudo identities when due; in stage 2 the result is only logged."""
        config = self.config.association
        border = self.config.schedule.border("intra_epochs")
        if phase.stage == "inter" and (epoch - border) % config.every:
            return {}
        found = memories.associate_features(features, self.labels.label, self.labels.cam_of, config)
        self.progress.clusters = found.labels
        report = diagnostics(found, self.labels.pid_of, self.labels.cam_of)
        if phase.stage == "inter" and found.num_clusters == 0:
            log.warning("no class was associated across cameras: stage 3 has nothing to learn")
        return {f"association_{key}": float(value) for key, value in report.items()}

    def _draw_instances(self, epoch: int) -> memories.InstanceDraws:
        slots = self.config.icdl.instances
        if slots == 0:
            return memories.all_instances(self.labels.label, self.num_classes)
        seed = (self.config.seed, epoch)
        index = draw_instances(self.labels.label, self.num_classes, slots, seed)
        return memories.InstanceDraws(index=index, valid=np.ones(index.shape, bool))

    def _plan(self, epoch: int, phase: Phase, context: Context) -> np.ndarray:
        config, iterations = self.config.sampler, self.config.schedule.iterations
        labels, seed, first_step = self.labels.label, self.config.seed, epoch * iterations
        if config.kind == "cluster_pk" and phase.stage == "inter":
            # Labels change every epoch, and with them the stream starts anew.
            labels = np.asarray(self.progress.clusters)[labels]
            seed, first_step = seed + 1_000_003 * (epoch + 1), 0
        return plan(
            labels,
            seed=seed,
            first_step=first_step,
            steps=iterations,
            classes_per_batch=config.classes,
            images_per_class=config.images,
        )

    def _report_classifier(self) -> None:
        accuracy, chance = self.progress.gid_accuracy, 1 / self.num_classes
        log.info("ICAL starts; the classifier's batch accuracy is %.4f", accuracy)
        if accuracy < 5 * chance:
            log.warning(
                "the global classifier is near chance (%.4f, chance %.4f) where ICAL starts: start "
                "it later (schedule.ical_start) or raise optimizer.classifier_lr",
                accuracy,
                chance,
            )

    def _learning_rate(self, epoch: int) -> float:
        config = self.config.optimizer
        return warmup_multistep(
            epoch,
            base=config.base_lr,
            warmup_epochs=config.warmup_epochs,
            warmup_factor=config.warmup_factor,
            milestones=config.milestones,
            gamma=config.gamma,
        )

    # Evaluation, checkpoints, summary.

    def evaluate(self) -> dict[str, float]:
        """Metrics of the retrieval feature on the test set."""
        return self._score(self._extract(self.extract_f, test=True))

    def _score(self, features: jax.Array) -> dict[str, float]:
        return score(features, self.dataset, no_match=self.config.evaluation.no_match)

    def _save(self) -> None:
        self.progress.seconds = self._seconds_before + self.log.seconds
        meta = describe_checkpoint(self._description(), self.progress, self.state)
        tree = pack(self.state, self.prompt_state, self.class_text)
        self.checkpoints.save(self.progress.number, tree, meta)

    def _description(self) -> dict:
        return describe_run(
            self.config,
            self.model_config,
            self.dataset,
            workdir=self.workdir,
            classes=self.num_classes,
        )

    def _restore(self) -> None:
        meta = self.checkpoints.restore_meta()
        check_resumable(meta, self._description(), self.workdir)
        tree = self.checkpoints.restore()
        check_digest(meta, tree["params"], tree["batch_stats"], where=str(self.workdir))
        restored = unpack(tree, self.state, self.prompt_state)
        self.state, self.prompt_state, self.class_text = replicate(restored, self.mesh)
        self.progress = Progress.from_json(meta["progress"])
        log.info(
            "resumed after %d prompt and %d encoder epochs",
            self.progress.prompt_epochs,
            self.progress.encoder_epochs,
        )

    def _write_summary(self) -> dict:
        progress = self.progress
        trained = [s for s in progress.stages if s["name"] in ("intra", "inter")]
        final = {k: v for k, v in (trained or [progress.zero_shot])[-1].items() if k != "g"}
        summary = {
            "method": "ccafl",
            "zero_shot": progress.zero_shot,
            "stages": progress.stages,
            "final": {k: v for k, v in final.items() if k not in ("name", "checkpoint", "seconds")},
            "seconds": self._seconds_before + self.log.seconds,
            "published": self.config.published,
            "dataset": self.dataset.name,
            "classes": self.num_classes,
            "train_images": int(self.images.shape[0]),
        }
        write_json(self.workdir / "summary.json", summary)
        print(result_table(summary_rows(summary)))
        return summary


def _headline(metrics: dict) -> dict:
    return {key: metrics[key] for key in ("mAP", "rank1", "same_camera_share")}


def _mean_metrics(found: list[dict]) -> dict[str, float]:
    """Means over an epoch; the only place that waits for the device."""
    values = jax.device_get(found)
    return {key: float(np.mean([v[key] for v in values])) for key in values[0]}


def _epoch_line(scalars: dict[str, float]) -> str:
    shown = {"loss": scalars["total"], "gid_acc": scalars["gid_accuracy"]}
    for key in ("association_clusters", "association_precision", "mAP", "rank1"):
        if key in scalars:
            shown[key.removeprefix("association_")] = scalars[key]
    return format_line(shown)
