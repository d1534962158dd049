"""A CALR run: clusters of each camera alone, then the epochs over all cameras.

Read `EncoderRun.train` first, which says how any run begins, resumes and ends, then `Run._stages`.
"""

import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.data.samplers import plan, plan_across_cameras
from ccafl_jax.memory import init_centroids
from ccafl_jax.methods.calr import local_labels
from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.methods.calr.labels import camera_labels, global_labels, refine_by_pivots
from ccafl_jax.methods.calr.phases import (
    Context,
    Phase,
    initial_state,
    learning_rate,
    make_step,
    phase_of,
)
from ccafl_jax.methods.calr.progress import Progress, pack, summarize, unpack
from ccafl_jax.methods.calr.state import CALRState
from ccafl_jax.methods.epochs import EpochRun, EpochStart, progress_bar
from ccafl_jax.methods.metadata import describe_run
from ccafl_jax.methods.run import Images
from ccafl_jax.models.camera_head import CameraHead
from ccafl_jax.models.reid import ReIDConfig, ReIDModel
from ccafl_jax.pseudo_labels.agglomerative import number_of_clusters
from ccafl_jax.pseudo_labels.infomap import require_infomap
from ccafl_jax.pseudo_labels.quality import pairwise
from ccafl_jax.pseudo_labels.refinement import Refined
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.layout import padded_rows
from ccafl_jax.training.log import format_line
from ccafl_jax.training.processes import is_first
from ccafl_jax.training.sharding import check_batch, replicate
from ccafl_jax.training.state import split_model

log = logging.getLogger("ccafl_jax")


class Run(EpochRun):
    """One training run in one folder."""

    def __init__(
        self,
        config: CALRConfig,
        *,
        dataset: ReIDDataset,
        images: Images,
        model: ReIDModel,
        model_config: ReIDConfig,
        workdir: pathlib.Path,
    ):
        """Args:
        config: options.
        dataset: records of the training, query and gallery sets.
        images: their images.
        model: with the weights that every camera, and stage 2, starts from.
        model_config: its sizes.
        workdir: the run folder.
        """
        super().__init__(config, dataset=dataset, images=images, workdir=workdir)
        self.model_config = model_config
        self.graphdef, params, batch_stats = split_model(model)
        head = CameraHead(
            model_config.features,
            len(dataset.camera_codes),
            hidden=config.alignment.hidden,
            dropout=config.alignment.dropout,
            bn_group=config.model.bn_group,
            rngs=nnx.Rngs(config.seed),
        )
        self.head_graph, *head_arrays = split_model(head)
        # On the host: a step consumes what it is given, and every camera starts from these.
        self._initial = jax.device_get((params, batch_stats, *head_arrays))
        self.state = self._fresh_state(0)
        self.progress = Progress(local=np.full(len(dataset.train), -1, np.int32))

    def _check(self) -> None:
        config = self.config
        local, sampler = config.local, config.sampler
        if "global" in config.stages:
            require_infomap()
        if "local" in config.stages:
            check_batch(local.classes * local.images, self.mesh, "local.classes")
        check_batch(sampler.classes * sampler.images, self.mesh, "sampler.classes")
        self.camid = self.dataset.train.camid
        self.cameras = np.unique(self.camid)

    def _ready(self) -> None:
        config = self.config
        if config.local.labels and "local" in config.stages:
            read = from_first(lambda: local_labels.read(config.local.labels, self.dataset))
            self.progress.local = np.asarray(read, np.int32)
            self.progress.local_epochs = self._local_epochs
        needed = "global" in config.stages and config.refinement.enabled
        if needed and "local" not in config.stages and (self.progress.local < 0).any():
            raise ValueError(
                "refinement needs local clusters: run with --stages local first (then --resume), "
                "name earlier ones by local.labels, or set refinement.enabled to False"
            )

    def _zero_shot(self) -> None:
        self._start_anew(0)
        super()._zero_shot()

    def _stages(self) -> None:
        if "local" in self.config.stages:
            self._train_local()
        if "global" in self.config.stages:
            self._train_global()

    def _fresh_state(self, steps: int) -> CALRState:
        """The state in which a camera, or stage 2, begins; random keys go on from `steps`."""
        state = initial_state(self.config, *map(dict, self._initial))
        return self._laid_out(state.replace(step=jnp.asarray(steps, jnp.int32)))

    def _start_anew(self, steps: int, chosen: np.ndarray | None = None) -> None:
        """Takes the fresh state, with the neck's statistics of the images it will be trained on."""
        self.state = self._fresh_state(steps)
        if self.config.model.calibrate_neck:
            self._calibrate_neck(chosen)

    def _make_step(self, phase: Phase) -> Callable:
        return make_step(
            self.graphdef,
            self.head_graph,
            phase,
            self.config,
            mesh=self.mesh,
            resident=self.images.resident,
            on_trace=self.traces.append,
        )

    # Stage 1.

    @property
    def _local_epochs(self) -> int:
        return len(self.cameras) * self.config.local.epochs

    def _train_local(self) -> None:
        options, start = self.config.local, self.progress.local_epochs
        if start >= self._local_epochs:
            return
        clock = time.monotonic()
        step = self._make_step(Phase("local"))
        left = self._local_epochs - start
        bar = progress_bar(left * options.iterations, "cameras", unit="step")
        for number in range(start, self._local_epochs):
            index, epoch = divmod(number, options.epochs)
            if epoch == 0 and self.progress.part is None:
                rows = np.flatnonzero(self.camid == self.cameras[index])
                self._start_anew(number * options.iterations, rows)
            scalars, _ = self._epoch(
                "local",
                step,
                lambda fresh, index=index, epoch=epoch: self._prepared(
                    "local",
                    self._cluster_camera(index, epoch) if fresh else {},
                    options.iterations,
                ),
                rate=self._learning_rate(epoch),
                where=f"camera {index + 1}, epoch {epoch + 1}",
                bar=bar,
            )
            self.progress.local_epochs = number + 1
            scalars = {"camera": int(self.cameras[index]), "camera_epoch": epoch} | scalars
            self.log.write("local", number, scalars)
            if epoch + 1 == options.epochs and is_first():
                tqdm.write(f"camera {index + 1}/{len(self.cameras)}: " + self._camera_line(index))
            if number + 1 < self._local_epochs:  # the last one is saved with its stage
                self._save()
        bar.close()
        self._finish_local(time.monotonic() - clock)

    def _cluster_camera(self, index: int, epoch: int) -> dict[str, float]:
        """Clusters a camera's images, keeps the clusters if none were better, and fills the bank.

        Returns:
          Figures for the log.
        """
        options, progress = self.config.local, self.progress
        rows = np.flatnonzero(self.camid == self.cameras[index])
        features = self._extract(self.extract_f, chosen=rows)

        built = from_first(lambda: camera_labels(features, options))
        clusters = np.asarray(built["labels"], np.int32)
        number, silhouette = int(clusters.max()) + 1, float(built["silhouette"])
        report = {
            "clusters": number,
            "silhouette": silhouette,
            **_pairs(clusters, self.dataset.train.pid[rows]),
        }
        if len(progress.cameras) == index:
            progress.cameras.append({"images": len(rows), "silhouette": -2.0})
        if silhouette > progress.cameras[index]["silhouette"]:
            progress.local[rows] = clusters
            progress.cameras[index] |= report | {"epoch": epoch}
        labels = np.full(len(self.camid), -1, np.int32)
        labels[rows] = clusters
        self._put_in_force(labels, np.ones(number, np.float32))
        memory = init_centroids(features, jnp.asarray(clusters), self._rows("local"))
        self.state = self._laid_out(self.state.replace(memory={"clusters": memory}))
        return report

    def _camera_line(self, index: int) -> str:
        found = self.progress.cameras[index]
        keys = ("images", "clusters", "silhouette", "epoch", "precision", "recall")
        return format_line({key: found[key] for key in keys if key in found})

    def _finish_local(self, seconds: float) -> None:
        progress = self.progress
        from_first(
            lambda: local_labels.write(self.workdir, self.dataset, progress.local, progress.cameras)
        )
        progress.stages.append({"name": "local", "cameras": progress.cameras, "seconds": seconds})
        self._save()

    # Stage 2.

    def _train_global(self) -> None:
        schedule, start = self.config.schedule, self.progress.encoder_epochs
        if start >= schedule.epochs:
            return
        if start == 0 and self.progress.part is None:
            self._start_anew(self._local_epochs * self.config.local.iterations)
        self._train_epochs(start, schedule.epochs, ends={schedule.epochs: "global"})

    def _phase(self, epoch: int) -> Phase:
        return phase_of(epoch, self.config)

    def _start(self, epoch: int, phase: Phase, *, fresh: bool) -> EpochStart:
        scalars = self._cluster_all(epoch) if fresh else {}
        return self._prepared("encoder", scalars, self.config.schedule.iterations)

    def _cluster_all(self, epoch: int) -> dict[str, float]:
        """Clusters all images, refines the clusters and fills the bank.

        Returns:
          Figures for the log.
        """
        features = self._extract(self.extract_f)
        built = from_first(lambda: self._labels(features, epoch))
        labels = np.asarray(built["labels"], np.int32)
        self._put_in_force(labels, np.asarray(built["weights"], np.float32))
        memory = init_centroids(features, jnp.asarray(labels), self._rows("encoder"))
        self.state = self._laid_out(self.state.replace(memory={"clusters": memory}))
        return {key: float(value) for key, value in built["report"].items()}

    def _labels(self, features: jax.Array, epoch: int) -> dict[str, Any]:
        """What `global_labels` makes of the features."""
        train, local = self.dataset.train, self.progress.local
        return global_labels(
            features,
            train.camid,
            local,
            train.pid,
            self.config,
            epoch=epoch,
            refiner=self._refine,
        )

    def _refine(self, *arguments: Any, **options: Any) -> Refined:
        """See `refine_by_pivots`; what experiments change."""
        return refine_by_pivots(*arguments, **options)

    # Both stages.

    def _prepared(self, stage: str, scalars: dict[str, float], iterations: int) -> EpochStart:
        """The start of an epoch whose labels and memory are in force."""
        return EpochStart(scalars, self._context(stage), self._plan(stage, iterations))

    def _learning_rate(self, epoch: int) -> float:
        return learning_rate(epoch, self.config)

    def _put_in_force(self, labels: np.ndarray, weights: np.ndarray) -> None:
        self.progress.labels, self.progress.weights = labels, weights

    def _rows(self, stage: str) -> int:
        """Rows of the bank of clusters in a stage; no epoch has more clusters."""
        if stage == "local":
            sizes = np.bincount(self.camid)
            rows = max(number_of_clusters(self.config.local.clusters, n) for n in sizes if n)
        else:
            rows = max(1, len(self.camid) // self.config.clustering.min_size)
        return padded_rows(rows, self.mesh) if self.config.scale.shard_classes else rows

    def _context(self, stage: str) -> Context:
        progress, rows = self.progress, self._rows(stage)
        unused = (0, rows - len(progress.weights))
        context = Context(
            label=jnp.asarray(progress.labels, jnp.int32),
            camid=jnp.asarray(self.camid, jnp.int32),
            cluster_valid=jnp.arange(rows) < len(progress.weights),
            cluster_weight=jnp.asarray(np.pad(progress.weights, unused), jnp.float32),
        )
        return replicate(context, self.mesh)

    def _plan(self, stage: str, iterations: int) -> np.ndarray:
        """The images of an epoch's batches, int[steps, batch]."""
        local, sampler = self.config.local, self.config.sampler
        labels, sizes = self.progress.labels, (local if stage == "local" else sampler)
        options = {
            # Labels change every epoch, and with them the stream starts anew.
            "seed": self.config.seed + 1_000_003 * (self.progress.number + 1),
            "first_step": 0,
            "steps": iterations,
            "classes_per_batch": sizes.classes,
            "images_per_class": sizes.images,
        }
        if stage != "local" and not sampler.across_cameras:
            return plan(labels, **options)
        return plan_across_cameras(labels, self.camid, **options)

    def _shown(self, scalars: dict[str, float]) -> dict[str, float]:
        keys = ("clusters", "removed", "precision", "recall", "mAP", "rank1")
        return super()._shown(scalars) | {key: scalars[key] for key in keys if key in scalars}

    # Checkpoints and summary.

    def _pack(self, *, memory: bool) -> dict[str, Any]:
        return pack(self.state, memory=memory)

    def _unpack(self, tree: dict[str, Any], progress: dict) -> None:
        self.progress = Progress.from_json(progress)
        stage = self.progress.part["stage"] if self.progress.part else "encoder"
        state = unpack(tree, self.state, rows={"clusters": self._rows(stage)})
        self.state = self._laid_out(state)

    def _description(self) -> dict:
        return describe_run(
            "calr",
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


def _pairs(labels: np.ndarray, pid: np.ndarray) -> dict[str, float]:
    """Precision and recall over pairs of images, where identities are known."""
    if (pid < 0).any():
        return {}
    found = pairwise(labels, pid)
    return {"precision": found.precision, "recall": found.recall}
