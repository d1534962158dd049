"""Audits the synthetic people; exits non-zero if a draw is not worth training on.

Prints a table and writes JSON; see data_prep/audit.py for the five conditions. Data seeds 0 to 2
serve tuning, reported figures use seeds from 100. With --clip DIR the zero-shot features of that
tiny CLIP are compared as well. `--render-docs JSON PAGE` only rewrites the table of a page.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ccafl_jax.command_line import Parser, one_line_errors
from ccafl_jax.report.pages import with_table
from data_prep import audit, synthetic

EXAMPLES = """\
examples:
  python scripts/synthetic_audit.py --seeds 0 1 2
  with the features of a tiny CLIP, figures to a file
    python scripts/synthetic_audit.py --seeds 100 --clip ccafl_jax/assets/tiny_clip --json a.json
  the table of a page from such a file
    python scripts/synthetic_audit.py --render-docs results/synthetic_audit.json docs/synthetic.md
"""


def main() -> int:
    """Runs the audit; returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="data seeds")
    parser.add_argument("--steps", type=int, default=audit.AuditConfig.steps)
    parser.add_argument("--clip", type=Path, help="directory of a tiny CLIP")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument(
        "--render-docs", type=Path, nargs=2, metavar=("JSON", "PAGE"), help="rewrite a page's table"
    )
    options = parser.parse_args()
    if options.render_docs:
        figures, page = options.render_docs
        table = audit.table(json.loads(figures.read_text()))
        page.write_text(with_table(page.read_text(), "audit", table))
        return 0
    features = audit.clip_features(options.clip) if options.clip else None
    results = []
    for seed in options.seeds:
        data = dataclasses.replace(audit.AUDIT_DATA, seed=seed)
        config = audit.AuditConfig(data=data, steps=options.steps)
        results.append(audit.audit(config, clip_features=features))
        figures = audit.figures(results, config)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"synthetic people {synthetic.VERSION}\n{audit.table(figures)}")
    failed = [
        f"seed {result['seed']}: {name}"
        for result in results
        for name, passed in result["verdicts"].items()
        if not passed
    ]
    print("failed: " + ", ".join(failed) if failed else "passed")
    return 1 if failed else 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
