"""Writes scripts/completion.bash, by which bash completes recipes and the options of every command.

It is used with `source scripts/completion.bash`, in the folder of the repository.
"""

import contextlib
import io
import pathlib
import re
import runpy
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ccafl_jax.command_line import Parser, one_line_errors

EXAMPLES = """\
examples:
  python scripts/completion.py            # writes the file anew
  python scripts/completion.py --check    # exit status 1 if that would change it
"""
ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = ROOT / "scripts" / "completion.bash"
TEMPLATE = """\
# Completes recipes and options of the commands: source scripts/completion.bash
# Written by scripts/completion.py.
_ccafl_jax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" options=""
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=()
  if [ -n "$options" ] && [ "$before" = --config ]; then
    mapfile -t COMPREPLY < <(compgen -G "configs/$word*.py"; compgen -G "$word*.py")
  elif [ "${{word#-}}" != "$word" ]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
  fi
}}
complete -o default -F _ccafl_jax python python3
"""


def main() -> int:
    """Writes the file, or compares it; returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--check", action="store_true", help="change nothing, compare")
    arguments = parser.parse_args()
    with one_line_errors():
        made = completion()
        if not arguments.check:
            FILE.write_text(made)
        elif made != FILE.read_text():
            print("scripts/completion.bash is stale: run python scripts/completion.py")
            return 1
        return 0


def completion() -> str:
    """The text of the file."""
    own = pathlib.Path(__file__).resolve()
    found = {own.name: ["--help", "--debug", "--check"]}  # which is running
    for path in sorted((ROOT / "scripts").glob("*.py")):
        if path != own and '\nif __name__ == "__main__":\n' in path.read_text():
            found[path.name] = options_of(path)
    cases = "\n".join(
        f'    scripts/{name}) options="{" ".join(words)}" ;;'
        for name, words in sorted(found.items())
    )
    return TEMPLATE.format(cases=cases)


def options_of(path: pathlib.Path) -> list[str]:
    """The options that the help of a command lists.

    Args:
      path: of the script.
    """
    said, argv, folders = io.StringIO(), sys.argv, list(sys.path)
    sys.argv = [str(path), "--help"]
    sys.path.insert(0, str(path.parent))
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, folders
    lines = [line for line in said.getvalue().splitlines() if re.match(r"  -", line)]
    names = [
        name for line in lines for name in re.findall(r"--\w[\w-]*", line.strip().split("  ")[0])
    ]
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(main())
