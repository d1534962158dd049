"""Images per second of the synthetic people, JPEG encoding included, in one process.

    python scripts/bench/synthetic.py

The small array operations of the renderer do not spread over cores; on Linux the process is
pinned to one core all the same.
"""

import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from ccafl_jax.command_line import Parser, one_line_errors
from data_prep import synthetic
from data_prep.synthetic.folder import render_names

EXAMPLES = """\
examples:
  python scripts/bench/synthetic.py                             # 200 identities of 128 x 64
  python scripts/bench/synthetic.py --ids 20 --height 256 --width 128
"""


def main() -> None:
    """Prints one line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--ids", type=int, default=200, help="identities")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    config = synthetic.SyntheticConfig(
        seed=100, train_ids=options.ids, test_ids=0, height=options.height, width=options.width
    )
    names = synthetic.folder_names(config)["bounding_box_train"]
    parsed = [synthetic.parse_name(name) for name in names]
    wall, cpu = time.perf_counter(), time.process_time()
    size = sum(len(synthetic.encode(*shot)) for shot in render_names(parsed, config))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{len(parsed)} images of {options.width} x {options.height}:"
        f" {len(parsed) / wall:.0f} images/s by the clock, {len(parsed) / cpu:.0f} by core time,"
        f" {size / len(parsed):.0f} bytes an image"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
