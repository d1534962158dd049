"""The tiny CLIP: an image and a text tower pre-trained on captions of synthetic people.

The people and the cameras come from streams that no data set draws from, captions leave out 30 to
50 % of the attributes, and there is no colour jitter: crossing cameras remains to be learnt. With
--colourless (assets/tiny_clip_infrared) it sees pictures in infrared and in grey, too, as CLIP did.
The directory written is a model like any other: open_clip_config.json, model.safetensors, the
tokenizer's files and a README with what the features achieve before any re-identification training.

The contrast of images and captions alone trains the attention pool and leaves the generalised mean
of the map (GeM) at chance; a second contrast through a linear head, thrown away afterwards, is
therefore put on the normalised GeM feature.
"""

import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image
from tqdm import tqdm

from ccafl_jax import numerics
from ccafl_jax.command_line import Parser, one_line_errors
from ccafl_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, augment, normalize
from ccafl_jax.evaluation.camera_bias import same_camera_base_rate, same_camera_share
from ccafl_jax.models import prompts
from ccafl_jax.models.clip import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    Tokenizer,
    load_clip,
    save_clip,
)
from ccafl_jax.models.layers import BNNeck, Compute, GeM, Linear
from ccafl_jax.models.reid import ReIDModel
from data_prep import synthetic
from data_prep.synthetic.cameras import NEAR, THERMAL, VISIBLE
from data_prep.synthetic.infrared import tones

HEIGHT, WIDTH = 64, 32
EXAMPLES = """\
examples:
  the one that comes with the package
    python -m data_prep.tiny_clip --out ccafl_jax/assets/tiny_clip
  one that has seen infrared and grey pictures
    python -m data_prep.tiny_clip --out DIR --colourless 0.5 --steps 900
  seconds of everything, no quality
    python -m data_prep.tiny_clip --out DIR --smoke
"""
CONTEXT = 44  # the longest complete caption has 41 tokens
EMBED_DIM = 128
LOWEST, HIGHEST = 3.0, 10.0  # zero-shot mAP in multiples of chance


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyClipConfig:
    """Settings of the pre-training.

    Attributes:
      seed: of people, cameras, images, captions and parameters.
      people: identities, all of the domain "pretrain".
      cameras: cameras, likewise.
      images: images of each person, each under a camera drawn at random.
      captions: captions of each person, one of which is drawn at every use.
      steps: training steps.
      batch: image-caption pairs in a step.
      learning_rate: peak of the cosine schedule.
      weight_decay: decoupled, on kernels.
      map_weight: weight of the contrast on the GeM feature.
      colourless: share of the images without colours, as many in near infrared, in thermal infrared
        and in grey; their captions tell light from dark in place of colours.
      pad: pixels of the random crop.
    """

    seed: int = 1000
    people: int = 3000
    cameras: int = 24
    images: int = 5
    captions: int = 6
    steps: int = 380
    batch: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    map_weight: float = 1.0
    pad: int = 4
    colourless: float = 0.0


SMOKE = TinyClipConfig(people=96, cameras=6, images=2, captions=2, steps=4, batch=16)


BANDS = (NEAR, THERMAL, VISIBLE)
"""What images without colours are taken in."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images and captions of the same people.

    Attributes:
      images: uint8[n, HEIGHT, WIDTH, 3].
      person: int32[n], row of the person of each image.
      kind: int32[n], 0 for images in colour, else 1 and the place in BANDS.
      ids: int32[people, kinds, captions, CONTEXT], token ids of the captions of each kind.
      eot: int32[people, kinds, captions], positions of the end-of-text tokens.
    """

    images: np.ndarray
    person: np.ndarray
    kind: np.ndarray
    ids: np.ndarray
    eot: np.ndarray


def build(out: pathlib.Path, config: TinyClipConfig, *, eval_seeds: tuple[int, ...]) -> dict:
    """Pre-trains the tiny CLIP and writes its directory.

    Args:
      out: directory, made if absent.
      config: settings.
      eval_seeds: data seeds whose zero-shot figures go into the README.

    Returns:
      The figures of the README.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(out, colourless=config.colourless > 0)
    pairs = draw_pairs(config, Tokenizer(out))
    start = time.perf_counter()
    clip, log = pretrain(config, pairs, vocab=len(json.loads((out / "vocab.json").read_text())))
    fold_scale(clip, pairs)
    seconds = time.perf_counter() - start
    preprocess = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    weights = save_clip(clip, out, half=True, preprocess=preprocess)
    figures = {
        "settings": dataclasses.asdict(config),
        "generator": synthetic.VERSION,
        "generator_sample_sha256": synthetic.sample_hash(),
        "steps": log,
        "seconds": round(seconds, 1),
        "bytes": weights.stat().st_size,
        "zero_shot": [zero_shot(out, synthetic.SyntheticConfig(seed=seed)) for seed in eval_seeds],
    }
    if config.colourless:
        figures["across_light"] = [across_light(out, seed) for seed in eval_seeds]
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    (out / "README.md").write_text(model_card(figures))
    return figures


def write_tokenizer(
    directory: pathlib.Path, *, sentences: int = 4000, colourless: bool = False
) -> None:
    """Trains a byte-pair vocabulary on captions and writes the files of a tokenizer.

    The files are vocab.json, merges.txt and tokenizer_config.json. Tokens are laid out as in
    CLIP's vocabulary: the bytes, the bytes at the end of a word, the merges, <|startoftext|> and
    <|endoftext|>.

    Args:
      directory: where to.
      sentences: captions to count pairs in.
      colourless: whether to count pairs in captions of images without colours too.
    """
    from tokenizers import Tokenizer as Trainable
    from tokenizers import models, pre_tokenizers, trainers

    rng = np.random.default_rng(0)
    people = synthetic.draw_people(range(sentences), seed=0, domain="pretrain")
    words = " ".join(synthetic.VOCABULARY).lower().split()
    corpus = [synthetic.caption(one, rng).lower() for one in people]
    corpus += words + [prompts.TEXT.lower()] * 2
    if colourless:
        corpus += [
            caption_in(one, rng, BANDS[i % len(BANDS)]).lower() for i, one in enumerate(people)
        ]
    bpe = Trainable(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(),
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [f"{letter}</w>" for letter in alphabet]
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=4000,
            min_frequency=1,
            initial_alphabet=alphabet,
            # Numbered in advance: the trainer numbers endings in random order, and equally
            # frequent pairs are merged in the order of their numbers.
            special_tokens=endings,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = alphabet + endings + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {"model_max_length": CONTEXT, "tokenizer_class": "CLIPTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def draw_pairs(config: TinyClipConfig, tokenizer: Tokenizer) -> Pairs:
    """Renders the images and writes the captions."""
    rng = np.random.default_rng(config.seed)
    people = synthetic.draw_people(range(config.people), seed=config.seed, domain="pretrain")
    cameras = synthetic.draw_cameras(
        range(1, config.cameras + 1), seed=config.seed, domain="pretrain"
    )
    person = np.repeat(np.arange(config.people, dtype=np.int32), config.images)
    camera = rng.integers(config.cameras, size=len(person))
    take = np.tile(np.arange(config.images), config.people)
    kind = draw_kinds(config, len(person))
    cameras += [
        one if band == VISIBLE else synthetic.infrared_camera(one, band)
        for band in BANDS
        for one in cameras
    ]
    camera = camera + config.cameras * kind
    plan = synthetic.make_plan(people, cameras, person, camera, take, seed=config.seed)
    images = np.empty((len(plan), HEIGHT, WIDTH, 3), np.uint8)
    chunk = 512
    bar = tqdm(total=len(plan), desc="images", unit="image")
    for start in range(0, len(plan), chunk):
        rows = slice(start, start + chunk)
        part = synthetic.Plan(
            *(getattr(plan, field.name)[rows] for field in dataclasses.fields(plan))
        )
        for row, picture in enumerate(synthetic.render_images(people, cameras, part)):
            small = Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            grey = kind[start + row] and BANDS[kind[start + row] - 1] == VISIBLE
            images[start + row] = np.asarray(small.convert("L").convert("RGB") if grey else small)
        bar.update(len(part))
    bar.close()
    kinds = (None, *BANDS) if config.colourless else (None,)
    texts = [
        caption_in(one, rng, band)
        for band in kinds
        for one in people
        for _ in range(config.captions)
    ]
    ids, eot = (
        np.moveaxis(x.reshape(len(kinds), config.people, config.captions, *x.shape[1:]), 0, 1)
        for x in tokenizer.encode(texts, CONTEXT)
    )
    return Pairs(images, person, kind, ids, eot)


def draw_kinds(config: TinyClipConfig, images: int) -> np.ndarray:
    """Which images have no colours: int32[images], 0 for colour, else 1 and the place in BANDS."""
    u = np.random.default_rng(config.seed + 2).random(images)
    place = np.floor(len(BANDS) * u / max(config.colourless, 1e-9))
    return np.where(u < config.colourless, 1 + place, 0).astype(np.int32)


def caption_in(person: synthetic.Person, rng: np.random.Generator, band: str | None) -> str:
    """A caption of a picture in colour (None) or in one of BANDS, where VISIBLE means grey."""
    if band is None:
        return synthetic.caption(person, rng)
    opening = "A photo" if band == VISIBLE else "An infrared photo"
    return synthetic.caption(person, rng, tones=tones(person, band), opening=opening)


def clip_loss(image: jax.Array, text: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Symmetric contrast of images and texts, row i belonging to row i.

    Args:
      image: float[n, dim].
      text: float[n, dim].
      log_scale: logarithm of the factor on the cosines.

    Returns:
      The mean of both cross-entropies.

    Source: Radford et al., "Learning transferable visual models from natural language supervision".
    """
    cosines = numerics.einsum(
        "id,jd->ij", numerics.l2_normalize(image), numerics.l2_normalize(text)
    )
    logits = cosines * jnp.exp(jnp.minimum(log_scale, np.log(100.0)))
    rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
    columns = jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
    return -(jnp.mean(rows) + jnp.mean(columns)) / 2


def pretrain(config: TinyClipConfig, pairs: Pairs, *, vocab: int) -> tuple[CLIP, list[dict]]:
    """Trains both towers.

    Args:
      config: settings.
      pairs: the data.
      vocab: number of tokens.

    Returns:
      The model, and the losses along the way.
    """
    graphdef, params, stats = nnx.split(_towers(config.seed, vocab), nnx.Param, nnx.BatchStat)
    warmup = min(100, config.steps // 4)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)
    kernels = jax.tree.map(lambda x: x.ndim > 1, params)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels)
    opt_state = optimizer.init(params)
    augmentation = AugmentConfig(pad=config.pad, erase_probability=0.0)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, stats, opt_state, images, ids, eot, count):
        images = augment(images, seed=config.seed, step=count, config=augmentation)

        def loss_fn(params):
            model = nnx.merge(graphdef, params, stats, copy=True)
            losses = model(images, ids, eot)
            total = losses["image"] + config.map_weight * losses["map"]
            return total, (losses, nnx.state(model, nnx.BatchStat))

        (_, (losses, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, losses

    ids = pairs.ids[..., : pairs.eot.max() + 1]
    rng = np.random.default_rng(config.seed + 1)
    order, log = np.zeros(0, int), []
    bar = tqdm(range(config.steps), desc="tiny CLIP", unit="step")
    for count in bar:
        if len(order) < config.batch:
            order = rng.permutation(len(pairs.images))
        rows, order = order[: config.batch], order[config.batch :]
        person = pairs.person[rows]
        which = pairs.kind[rows], rng.integers(ids.shape[2], size=config.batch)
        text = ids[person, *which], pairs.eot[person, *which]
        params, stats, opt_state, losses = step(
            params, stats, opt_state, pairs.images[rows], *text, np.int32(count)
        )
        if (count + 1) % max(1, config.steps // 20) == 0:
            log.append({"step": count + 1} | {k: round(float(v), 3) for k, v in losses.items()})
            bar.set_postfix(log[-1], refresh=False)
    return nnx.merge(graphdef, params, stats).clip, log


class _Pretraining(nnx.Module):
    """Both towers, and the head of the contrast on the GeM feature."""

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        features = config.vision.features
        self.clip = CLIP(config, rngs=rngs)
        self.head = Linear(
            features,
            config.embed_dim,
            stddev=features**-0.5,
            use_bias=False,
            compute=Compute(),
            rngs=rngs,
        )

    def __call__(self, images, ids, eot) -> dict[str, jax.Array]:
        feature_map = self.clip.visual.encode(images, train=True)[1]
        text = self.clip.text.encode_ids(ids, eot)
        # A fresh exponent and neck, as re-identification training will begin with.
        pooled = GeM()(feature_map)
        f = numerics.l2_normalize(BNNeck(pooled.shape[-1])(pooled, train=True))
        scale = self.clip.logit_scale[...]
        return {
            "image": clip_loss(self.clip.visual.project(feature_map), text, scale),
            "map": clip_loss(self.head(f), text, scale),
        }


def _towers(seed: int, vocab: int) -> _Pretraining:
    config = CLIPConfig(
        embed_dim=EMBED_DIM,
        vision=ResNetConfig(
            layers=(1, 1, 1, 1), width=16, image_size=(HEIGHT, WIDTH), last_stride=1
        ),
        text=TextConfig(vocab=vocab, context=CONTEXT, width=64, heads=2, layers=2),
        activation="quick_gelu",
    )
    return _Pretraining(config, nnx.Rngs(seed))


def fold_scale(clip: CLIP, pairs: Pairs, *, count: int = 512) -> None:
    """Scales both projections so that raw products are the trained logits.

    Re-identification compares raw products g.t, which are of the size of logits in CLIP's published
    models but of any size after training with normalised features. The cosines do not change.

    Args:
      clip: changed in place.
      pairs: where the mean lengths are measured.
      count: pairs used for that.
    """
    rows = np.linspace(0, len(pairs.images) - 1, min(count, len(pairs.images))).astype(int)
    person = pairs.person[rows]
    g = jax.jit(lambda x: clip.visual(x, train=False))(normalize(pairs.images[rows]))
    first = person, pairs.kind[rows], 0
    t = jax.jit(clip.text.encode_ids)(pairs.ids[first], pairs.eot[first])
    length = float(np.exp(min(float(clip.logit_scale[...]), np.log(100.0)))) ** 0.5
    for features, tensors in (
        (g, (clip.visual.attnpool.c_proj.kernel, clip.visual.attnpool.c_proj.bias)),
        (t, (clip.text.text_projection,)),
    ):
        factor = length / float(jnp.mean(jnp.linalg.norm(features, axis=1)))
        for tensor in tensors:
            tensor[...] = tensor[...] * jnp.asarray(factor, tensor.dtype)


def zero_shot_features(
    images: np.ndarray, *, directory: pathlib.Path, calibrate_on: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features of a model that was never trained for re-identification.

    Args:
      images: uint8[n, HEIGHT, WIDTH, 3].
      directory: of the tiny CLIP.
      calibrate_on: uint8[m, HEIGHT, WIDTH, 3], images whose statistics the neck takes; None means
        `images`.

    Returns:
      f float32[n, dim], L2-normalised (GeM and the calibrated neck), and g float32[n, joint_dim]
      (attention pool).
    """
    model = ReIDModel(load_clip(directory).visual)

    @jax.jit
    def forward(batch):
        feature_map = model.visual.encode(normalize(batch), train=False)[1]
        return model.gem(feature_map), model.visual.project(feature_map)

    def extract(images):
        size = 256
        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % size, axis=0)])
        parts = [forward(padded[i : i + size]) for i in range(0, len(padded), size)]
        return [np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True)]

    pooled, g = extract(images)
    reference = pooled if calibrate_on is None else extract(calibrate_on)[0]
    model.neck.mean[...] = jnp.asarray(reference.mean(0))
    model.neck.var[...] = jnp.asarray(reference.var(0, ddof=1))
    f = numerics.l2_normalize(model.neck(jnp.asarray(pooled), train=False))
    return np.asarray(f), g


def zero_shot(directory: pathlib.Path, data: synthetic.SyntheticConfig) -> dict:
    """Retrieval across cameras and camera bias of both features on one data set.

    Args:
      directory: of the tiny CLIP.
      data: the set, drawn in memory.

    Returns:
      Chance mAP, the same-camera share of features that ignore the camera, and for f and g mAP,
      rank-1, same-camera share, and mAP in multiples of chance.
    """
    from data_prep import audit

    splits = audit.draw_splits(data)
    query, gallery = splits["query"], splits["gallery"]
    images = np.concatenate([query.images, gallery.images])
    pair = zero_shot_features(images, directory=directory, calibrate_on=splits["train"].images)
    pid = np.concatenate([query.pid, gallery.pid])
    camid = np.concatenate([query.camid, gallery.camid])
    real = pid > 0  # distractors are nobody's identity
    chance = audit.chance_map(query, gallery)
    result = {
        "seed": data.seed,
        "chance": chance,
        "same_camera_base": same_camera_base_rate(pid[real], camid[real]),
    }
    for name, x in zip(("f", "g"), pair, strict=True):
        scores = audit.retrieval(query, gallery, x[: len(query.pid)], x[len(query.pid) :])
        scores["same_camera"] = same_camera_share(x[real], pid[real], camid[real])
        scores["times_chance"] = scores["mAP"] / chance
        result[name] = scores
    return result


def across_light(directory: pathlib.Path, seed: int) -> dict:
    """Retrieval of visible by near-infrared images of the people of SYSU-MM01's layout.

    Args:
      directory: of the tiny CLIP.
      seed: of the people.

    Returns:
      Chance mAP, and for f and g mAP, rank-1 and mAP in multiples of chance.
    """
    from data_prep import audit
    from data_prep.synthetic.layouts.common import iterate_pictures
    from data_prep.synthetic.layouts.sysumm01 import training_pairs

    config = training_pairs(seed=seed, train_ids=60)
    tracks = synthetic.layout_of("sysumm01").blueprint(config).tracks
    rows = [
        (
            np.asarray(Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)),
            int(path.split("/")[1]),
            camera.code,
            camera.band == NEAR,
        )
        for path, pixels, camera in iterate_pictures(tracks, config)
    ]
    images, pid, camid, near = (np.array(column) for column in zip(*rows, strict=True))
    query, gallery = (
        audit.Split(images[part], pid[part].astype(np.int32), camid[part].astype(np.int32))
        for part in (near, ~near)
    )
    chance = audit.chance_map(query, gallery)
    result: dict = {"seed": seed, "chance": chance}
    for name, x in zip(("f", "g"), zero_shot_features(images, directory=directory), strict=True):
        scores = audit.retrieval(query, gallery, x[near], x[~near])
        result[name] = scores | {"times_chance": scores["mAP"] / chance}
    return result


def model_card(figures: dict) -> str:
    """The README of the model: what it is, how it was made, what it achieves untrained."""
    settings = figures["settings"]
    lines = [
        "# Tiny CLIP",
        "",
        "A CLIP of a ResNet image tower (width 16, one block a stage, 64x32 images, stride 16) and",
        "a text tower (2 layers, width 64) with a joint space of 128, for trying out",
        "re-identification without downloads. Weights are float16 in open_clip's naming; the",
        "tokenizer is a byte-pair vocabulary of the captions' words.",
        "",
        f"Pre-trained by `python -m data_prep.tiny_clip` for {settings['steps']} steps of",
        f"{settings['batch']} image-caption pairs: {settings['people']} synthetic people under",
        f"{settings['cameras']} cameras, none of which any data set uses (generator version",
        f"{figures['generator']}). Captions leave out 30 to 50 % of the attributes; images are",
        "flipped and shifted, colours stay as the cameras see them.",
        "",
        "Raw products of image and text features have the size of the trained logits.",
        "",
        "## Zero-shot retrieval across cameras",
        "",
        "f: generalised mean of the last map through the neck, calibrated on the training images;",
        "g: attention pool. Same-camera share: of the five nearest images of other identities,",
        "those from one's own camera.",
        "",
        "| data seed | chance mAP | f: mAP (x chance) | f: rank-1 | f: same camera "
        "| g: mAP (x chance) | g: rank-1 | g: same camera | same camera at random |",
        "|" + "---|" * 9,
    ]
    for row in figures["zero_shot"]:
        cells = [str(row["seed"]), f"{row['chance']:.3f}"]
        for name in ("f", "g"):
            part = row[name]
            cells += [
                f"{part['mAP']:.3f} ({part['times_chance']:.1f})",
                f"{part['rank1']:.3f}",
                f"{part['same_camera']:.2f}",
            ]
        cells.append(f"{row['same_camera_base']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    if "across_light" in figures:
        lines += _card_across_light(figures)
    return "\n".join(lines) + "\n"


def _card_across_light(figures: dict) -> list[str]:
    share = f"{100 * figures['settings']['colourless']:.0f} %"
    lines = [
        "",
        "## Images without colours",
        "",
        f"{share} of the images are in near infrared, thermal infrared or grey, a third each;",
        "their captions tell light from dark in place of colours. Zero-shot retrieval of visible",
        "by near-infrared images:",
        "",
        "| data seed | chance mAP | f: mAP (x chance) | f: rank-1 "
        "| g: mAP (x chance) | g: rank-1 |",
        "|" + "---|" * 6,
    ]
    for row in figures["across_light"]:
        cells = [str(row["seed"]), f"{row['chance']:.3f}"]
        for part in (row["f"], row["g"]):
            cells += [f"{part['mAP']:.3f} ({part['times_chance']:.1f})", f"{part['rank1']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--seed", type=int, help="seed of the whole run")
    parser.add_argument(
        "--colourless", type=float, help="share of the images in infrared or grey (default: 0)"
    )
    parser.add_argument("--smoke", action="store_true", help="seconds of everything, no quality")
    parser.add_argument("--eval-seeds", type=int, nargs="*", default=[100, 101, 102])
    args = parser.parse_args(argv)
    config = SMOKE if args.smoke else TinyClipConfig()
    changes = {"steps": args.steps, "seed": args.seed, "colourless": args.colourless}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    seeds = args.eval_seeds[:1] if args.smoke else args.eval_seeds
    figures = build(args.out, config, eval_seeds=tuple(seeds))
    print(json.dumps(figures["zero_shot"], indent=2))
    print(f"{args.out}: {figures['bytes'] / 1e6:.1f} MB of weights, {figures['seconds']} s")
    outside = [
        f"{name} of seed {row['seed']} at {row[name]['times_chance']:.1f} times chance"
        for row in figures["zero_shot"]
        for name in ("f", "g")
        if not LOWEST <= row[name]["times_chance"] <= HIGHEST
    ]
    if outside and not args.smoke:
        print(f"outside {LOWEST} to {HIGHEST} times chance: {'; '.join(outside)}; change --steps")
        return 1
    return 0


if __name__ == "__main__":
    with one_line_errors():
        raise SystemExit(main())
