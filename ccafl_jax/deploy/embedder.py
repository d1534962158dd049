"""Models as functions of images: paths, PIL images or arrays in, retrieval features out."""

import concurrent.futures
import functools
import os
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from tqdm import tqdm

from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.fingerprints import model_fingerprint
from ccafl_jax.deploy.forward import all_arrays, compiled_embed
from ccafl_jax.deploy.images import as_list, read_images
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.training.description import Preprocess
from ccafl_jax.training.sharding import make_mesh, replicate, shard_rows

_WATCHED = 20  # batches from which on a bar is shown

Step = Callable[[np.ndarray, np.ndarray | None], jax.Array | np.ndarray]
Fingerprint = Callable[..., str]


class ImageEmbedder:
    """Any function of a batch of uint8 images, for images of any kind, size and number.

    Cameras are rows of the camera embedding, counted from 0; `camera_codes` tells which number of
    the data set each row stands for. In their place models of two streams take the modality of each
    image: 0 visible, 1 infrared.

    Attributes:
      preprocess: the size to which images are resized, and the filter.
      features: size of the retrieval feature.
      cameras: rows of the model's camera embedding, 2 for two streams; 0 without either.
      batch: images a call; the last call is filled up, so that one compilation serves all.
      camera_codes: the data set's number of the camera of each row; empty where they are not known
        to be others than 1, 2, ...
      two_streams: whether cameras are modalities.
    """

    def __init__(
        self,
        step: Step,
        *,
        preprocess: Preprocess,
        features: int,
        cameras: int,
        batch: int,
        camera_codes: Sequence[int] = (),
        two_streams: bool = False,
        fingerprint: Fingerprint | None = None,
    ):
        """Args:
        step: (uint8[batch, height, width, 3], int32[batch] or None) -> float32[batch, features].
        preprocess, features, cameras, batch, camera_codes, two_streams: see the class.
        fingerprint: see the method; called with `flip`.

        Raises:
          ValueError: a batch below 1.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}; choose 1 or more")
        self._step = step
        self.preprocess = preprocess
        self.features = features
        self.cameras = cameras
        self.batch = batch
        self.camera_codes = tuple(camera_codes)
        self.two_streams = two_streams
        self._fingerprint = fingerprint

    def __repr__(self) -> str:
        size = f"{self.preprocess.height}x{self.preprocess.width}"
        return (
            f"{type(self).__name__}(features={self.features}, images={size}, "
            f"cameras={self.cameras}, batch={self.batch})"
        )

    def fingerprint(self, *, flip: bool = False) -> str:
        """What tells this model's features from those of others, 64 hexadecimal digits.

        It is the same for every form of a model, and for what `scripts/evaluate.py` extracts.

        Args:
          flip: of features that are averaged with those of mirror images.

        Raises:
          ValueError: the model is a function that was exported without one.
        """
        if self._fingerprint is None:
            raise ValueError(
                "this exported function does not say which model it is; export the model again"
            )
        return self._fingerprint(flip=flip)

    def embed(
        self,
        images: object,
        cameras: int | Sequence[int] | None = None,
        *,
        flip: bool = False,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Retrieval features.

        Images are resized as `preprocess` says, as in training. They are decoded batch by batch, so
        any number of paths will do.

        Args:
          images: paths, PIL images or uint8 arrays [height, width, 3] or [height, width] (grey)
            of any size, in a list or alone; or uint8[n, height, width, 3].
          cameras: the camera of each image, or one for all: rows counted from 0, which
            `camera_codes` explains, or modalities; needed if and only if the model has a camera
            embedding, or two streams.
          flip: average the feature of each image with that of its mirror image.
          progress: whether to show a bar; None shows one for long work on a terminal.

        Returns:
          float32[n, features], L2-normalised.

        Raises:
          FileNotFoundError: a path to nothing.
          ValueError: something that is no image, a damaged file, or cameras that do not fit.
        """
        images = as_list(images)
        count = len(images)
        cameras = self._check_cameras(cameras, count)
        starts = range(0, count, self.batch)
        if progress is None:
            progress = len(starts) >= _WATCHED and sys.stderr.isatty()
        size = self.preprocess.pixels
        step = _with_mirror_images(self._step) if flip else self._step
        parts, running = [], None
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in tqdm(starts, desc="features", leave=False, disable=not progress):
                rows = range(start, min(start + self.batch, count))
                pixels = _filled(read_images(images, rows, size, pool=pool), self.batch)
                chosen = None if cameras is None else cameras[rows.start : rows.stop]
                chosen = None if chosen is None else _filled(chosen, self.batch)
                # One batch is computed while the next is decoded, and no more lie in memory.
                running, done = step(pixels, chosen), running
                parts += [] if done is None else [np.asarray(done)]
        parts += [] if running is None else [np.asarray(running)]
        return np.concatenate([np.zeros((0, self.features), np.float32), *parts])[:count]

    def _check_cameras(self, cameras: object, count: int) -> np.ndarray | None:
        if not self.cameras:
            if cameras is not None:
                raise ValueError(
                    "this model has neither a camera embedding nor two streams; leave cameras out"
                )
            return None
        scale = f"0 to {self.cameras - 1}"
        if cameras is None:
            raise ValueError(
                f"this model has a camera embedding or two streams; pass cameras, {scale}, one for "
                "each image"
            )
        cameras = np.asarray(cameras)
        if cameras.ndim == 0:
            cameras = np.full(count, cameras)
        if cameras.shape != (count,) or (count and cameras.dtype.kind not in "iu"):
            raise ValueError(
                f"cameras are {cameras.dtype}{list(cameras.shape)}; expected {count} integers, "
                f"{scale}, one for each image"
            )
        wrong = cameras[(cameras < 0) | (cameras >= self.cameras)]
        if wrong.size:
            raise ValueError(f"camera {wrong[0]} is unknown to this model; its cameras are {scale}")
        return cameras.astype(np.int32)


class Embedder(ImageEmbedder):
    """A model of this library as a function of images; see `ImageEmbedder.embed`."""

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        batch: int = 64,
        compute_dtype: str = "float32",
        devices: int = 1,
    ):
        """Args:
        bundle: the model.
        batch: images a call, rounded up to a multiple of the devices.
        compute_dtype: of the activations: "float32" (products at HIGHEST) or "bfloat16".
        devices: of this process, how many to spread a batch over; 0 for all.

        Raises:
          ValueError: another dtype, or more devices than there are.
        """
        embed = compiled_embed(bundle.model, bundle.preprocess, compute_dtype)
        mesh = make_mesh(devices, local=True)
        arrays = replicate(all_arrays(bundle), mesh)

        def step(pixels: np.ndarray, cameras: np.ndarray | None) -> jax.Array:
            inputs = (pixels,) if cameras is None else (pixels, cameras)
            return embed(arrays, *(shard_rows(x, mesh) for x in inputs))

        size = mesh.devices.size
        super().__init__(
            step,
            preprocess=bundle.preprocess,
            features=bundle.model.features,
            cameras=bundle.model.kinds,
            batch=-(-batch // size) * size,
            camera_codes=() if bundle.model.dual_stream else bundle.camera_codes,
            two_streams=bundle.model.dual_stream,
            fingerprint=functools.partial(model_fingerprint, bundle),
        )


def _with_mirror_images(step: Step) -> Step:
    """Means of the features of images and of their mirror images, at unit length."""

    def both(pixels: np.ndarray, cameras: np.ndarray | None) -> jax.Array:
        mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
        return l2_normalize(step(pixels, cameras) + step(mirrored, cameras))

    return both


def _filled(rows: np.ndarray, batch: int) -> np.ndarray:
    """Repeats the first row up to the size of a batch."""
    absent = batch - len(rows)
    return np.concatenate([rows, np.repeat(rows[:1], absent, axis=0)]) if absent else rows
