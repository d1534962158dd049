"""A CCAFL run: the three stages, evaluation, logs, checkpoints and the summary.

Read `Run.train` from the top: zero-shot figures, prompts, then the epochs of stages 2 and 3. Every
epoch ends with a checkpoint, and `resume` continues after the last complete one. Random draws are
functions of (seed, epoch or step), so nothing but the state has to be carried over.
"""

import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ccafl_jax.data.labels import intra_camera_labels
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.methods.ccafl import holdout, memories, prompts
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.metadata import (
    check_resumable,
    describe_checkpoint,
    describe_run,
    training_digest,
)
from ccafl_jax.methods.ccafl.model import image_model
from ccafl_jax.methods.ccafl.phases import (
    Phase,
    initial_state,
    learning_rate,
    make_step,
    phase_of,
    report_classifier,
)
from ccafl_jax.methods.ccafl.progress import Progress, pack, summarize, unpack
from ccafl_jax.models.clip import CLIP, Tokenizer
from ccafl_jax.models.prompts import init_prompts, prompt_template, template_embeddings
from ccafl_jax.pseudo_labels.cross_camera import diagnostics
from ccafl_jax.report.summary import result_table, summary_rows, write_json
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.description import check_digest
from ccafl_jax.training.extract import Extractor
from ccafl_jax.training.features import feature_extractor, query_then_gallery, score
from ccafl_jax.training.log import RunLog, format_line, mean_metrics
from ccafl_jax.training.sharding import check_batch, make_mesh, replicate, shard_rows
from ccafl_jax.training.state import split_model

log = logging.getLogger("ccafl_jax")


@dataclasses.dataclass(frozen=True)
class Images:
    """Decoded images of a data set: uint8[n, height, width, 3].

    Attributes:
      train: in the order of `dataset.train`.
      test: the query set followed by the gallery.
      val: images held out of training, in the order of `held_out`; None where there are none.
    """

    train: np.ndarray
    test: np.ndarray
    val: np.ndarray | None = None


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
        held_out: Records | None = None,
    ):
        """Args:
        config: options.
        dataset: records of the training, query and gallery sets.
        images: their pixels.
        clip: both towers, at the size of the images.
        tokenizer: of the text tower.
        workdir: the run folder.
        held_out: records of `images.val`; the training set is without them.
        """
        config.association.function()  # a name that cannot be found is told before any work
        self.config = config
        self.dataset = dataset
        self.workdir = workdir
        self.mesh = make_mesh(config.devices)
        check_batch(config.sampler.classes * config.sampler.images, self.mesh)
        self.labels = intra_camera_labels(dataset.train.pid, dataset.train.camid)
        config.sampler.check_classes(self.num_classes)
        self.images = replicate(images.train, self.mesh)
        self.test_images = images.test
        self.val_images, self.held_out = images.val, held_out

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

    def _extract(self, extractor: Extractor, split: str = "train") -> jax.Array:
        """Features of "train", "val" or "test" (the query set followed by the gallery)."""
        if split == "train":
            images, camid = self.images, self.dataset.train.camid
        elif split == "val":
            images, camid = self.val_images, self.held_out.camid
        else:
            images, camid = self.test_images, query_then_gallery(self.dataset)[1]
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
        self.log = RunLog(
            self.workdir,
            dataset=self.dataset.name,
            resume_at=self.progress.next_epochs() if resume else None,
        )
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
        result["g"] = self._score(self._extract(self.extract_g, "test"))
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
        if start >= config.epochs:
            return
        clock = time.monotonic()
        context = self._prompt_context()
        step = prompts.make_prompt_step(
            self.text_graph, self.template, config, on_trace=self.traces.append
        )
        for epoch, state, means in prompts.epochs(
            step, self.prompt_state, context, config, seed=self.config.seed, start=start
        ):
            self.prompt_state = state
            self.log.write("prompts", epoch, means)
            self.progress.prompt_epochs = epoch + 1
            if epoch + 1 < config.epochs:  # the last one is saved with the texts
                self._save()
        self._finish_prompts(context, means["loss"], clock)

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
            last = {schedule.epochs: "inter", min(border, schedule.epochs): "intra"}
            ends = last.get(epoch + 1)
            every = self.config.evaluation.every
            if ends or (every and (epoch + 1) % every == 0):
                result = self.evaluate()
                scalars |= _headline(result)
                holdout.watch(self.progress.val_history, result)
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
            report_classifier(self.progress.gid_accuracy, self.num_classes)
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
        for rows in self._plan(epoch, phase):
            self.state, metrics = step(
                self.state, context, self.images, shard_rows(rows, self.mesh), rate
            )
            found.append(metrics)
            bar.update()
        means = mean_metrics(found)
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
        return memories.instance_draws(self.config, self.labels.label, self.num_classes, epoch)

    def _plan(self, epoch: int, phase: Phase) -> np.ndarray:
        return memories.batch_plan(
            self.config, phase, epoch, self.labels.label, self.progress.clusters
        )

    def _learning_rate(self, epoch: int) -> float:
        return learning_rate(epoch, self.config.optimizer)

    # Evaluation, checkpoints, summary.

    def evaluate(self) -> dict:
        """Metrics of the retrieval feature on the test set, and on the held-out images."""
        result = self._score(self._extract(self.extract_f, "test"))
        if self.held_out is not None:
            features = self._extract(self.extract_f, "val")
            result["val"] = holdout.score_held_out(features, self.held_out)
        return result

    def _score(self, features: jax.Array) -> dict:
        return score(features, self.dataset, no_match=self.config.evaluation.no_match)

    def _save(self) -> None:
        self.progress.seconds = self._seconds_before + self.log.seconds
        meta = describe_checkpoint(self._description(), self.progress, self.state)
        tree = pack(self.state, self.prompt_state, self.class_text)
        self.checkpoints.save(self.progress.number, tree, meta)

    @functools.cached_property
    def _training_set(self) -> str:
        return training_digest(self.dataset.train)  # walks over all images, so once a run

    def _description(self) -> dict:
        return describe_run(
            self.config,
            self.model_config,
            self.dataset,
            workdir=self.workdir,
            classes=self.num_classes,
            training_set=self._training_set,
        )

    def _restore(self) -> None:
        meta = self.checkpoints.restore_meta()
        holdout.check_same_hold_out(meta, self.config, str(self.workdir))
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
        summary = summarize(
            self.progress,
            self.config,
            dataset=self.dataset.name,
            classes=self.num_classes,
            train_images=int(self.images.shape[0]),
            seconds=self._seconds_before + self.log.seconds,
        )
        write_json(self.workdir / "summary.json", summary)
        print(result_table(summary_rows(summary)))
        return summary


def _headline(metrics: dict) -> dict:
    shown = {key: metrics[key] for key in ("mAP", "rank1", "same_camera_share")}
    return shown | ({"val_mAP": metrics["val"]["mAP"]} if "val" in metrics else {})


def _epoch_line(scalars: dict[str, float]) -> str:
    shown = {"loss": scalars["total"], "gid_acc": scalars["gid_accuracy"]}
    for key in ("association_clusters", "association_precision", "mAP", "rank1", "val_mAP"):
        if key in scalars:
            shown[key.removeprefix("association_")] = scalars[key]
    return format_line(shown)
