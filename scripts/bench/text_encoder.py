"""Times the text tower at RN50's size: all 77 positions against the 12 up to end-of-text.

Prints both times, their ratio and the largest difference of the features; exits with 1 when the
ratio is below 4 or the difference above 1e-5.
"""

import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ccafl_jax.command_line import Parser, one_line_errors
from ccafl_jax.models import prompts
from ccafl_jax.models.clip import TextConfig, TextTransformer

EXAMPLES = """\
examples:
  python scripts/bench/text_encoder.py
  python scripts/bench/text_encoder.py --classes 16 --repeats 3 --out text.json
"""
RN50 = TextConfig(vocab=49408, context=77, width=512, heads=8, layers=12)
TEMPLATE = prompts.template_from_ids(
    (49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407), slot=343
)


def main() -> int:
    """Runs the benchmark."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--classes", type=int, default=64, help="prompts a call")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the figures")
    args = parser.parse_args()
    result = measure(classes=args.classes, repeats=args.repeats)
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["ratio"] >= 4 and result["max_difference"] <= 1e-5 else 1


def measure(*, classes: int, repeats: int) -> dict:
    """Times both forms in turn, so that a busy moment meets both."""
    make = nnx.jit(
        lambda: TextTransformer(RN50, out_features=1024, activation="quick_gelu", rngs=nnx.Rngs(0))
    )
    graphdef, state = nnx.split(make())

    @jax.jit
    def encode(state, embeddings, eot):
        return nnx.merge(graphdef, state)(embeddings, eot)

    learned = prompts.init_prompts(jax.random.key(1), classes, width=RN50.width)
    frozen = prompts.template_embeddings(state["token_embedding"][...], TEMPLATE)
    short = prompts.assemble(frozen, TEMPLATE, learned)
    padding = jnp.broadcast_to(
        state["token_embedding"][0], (classes, RN50.context - short.shape[1], RN50.width)
    )
    inputs = {"all": jnp.concatenate([short, padding], axis=1), "to_eot": short}
    eot = jnp.full(classes, TEMPLATE.eot)
    features = {name: np.asarray(encode(state, x, eot)) for name, x in inputs.items()}
    seconds = {name: [] for name in inputs}
    for _ in range(repeats):
        for name, x in inputs.items():
            start = time.perf_counter()
            encode(state, x, eot).block_until_ready()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "classes": classes,
        "repeats": repeats,
        "positions": {name: x.shape[1] for name, x in inputs.items()},
        "seconds_median": medians,
        "seconds_spread": {name: [min(v), max(v)] for name, v in seconds.items()},
        "ratio": medians["all"] / medians["to_eot"],
        "feature_scale": float(np.abs(features["all"]).max()),
        "max_difference": float(np.abs(features["all"] - features["to_eot"]).max()),
    }


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
