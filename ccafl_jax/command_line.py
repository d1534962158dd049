"""Manners of the commands: help with examples, errors in one line, and what a status means.

0 done; 1 a check did not hold, or the program itself failed; 2 something that the user can mend;
130 interrupted; 141 nobody reads the output any more. `scripts/train.py` has more, see
docs/training.md.
"""

import argparse
import contextlib
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

DEBUG = "--debug"
FAILED, WRONG_USE, INTERRUPTED, CLOSED = 1, 2, 130, 141
"""Exit statuses."""

_MENDABLE = (ValueError, OSError, ImportError, FloatingPointError)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names the nearest flag; help shows examples.

    Every one of them takes `--debug`, which `one_line_errors` heeds.
    """

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument(DEBUG, action=_Ignored, help="show where an error came from")

    def parse_known_args(self, args=None, namespace=None):
        """As every parser's; what was typed is kept for `error`."""
        self._typed = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        hint = "see --help"
        for word in (word.partition("=")[0] for word in self._typed if word.startswith("--")):
            near = difflib.get_close_matches(word, self._option_string_actions, n=1)
            known = any(flag.startswith(word) for flag in self._option_string_actions)
            if near and not known and not word.startswith("--config."):
                hint = f"did you mean {near[0]}?"
                hint = hint if word in message else f"{word} is no option, {hint}"
                break
        self.exit(WRONG_USE, f"error: {message}; {hint}\n")


class _Ignored(argparse.Action):
    """Leaves nothing among the arguments: errors may come before those are parsed."""

    def __init__(self, **options: Any):
        super().__init__(nargs=0, **options | {"default": argparse.SUPPRESS})

    def __call__(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors into one line on stderr, with a traceback before it where `--debug` was given.

    What a user can mend ends with status 2, any other error, which is a fault of the program, with
    status 1. Being asked to end (SIGTERM) is treated like Ctrl-C: what is half-written is removed
    first.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # threads of other libraries may not survive an orderly end
    except BrokenPipeError:  # who read along has enough, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED) from None
    except Exception as error:
        if DEBUG in sys.argv:
            traceback.print_exc()
        status, words = _explained(error)
        print("error: " + " ".join(words.split("\n")), file=sys.stderr)
        raise SystemExit(status) from error


def _explained(error: Exception) -> tuple[int, str]:
    """The exit status of an error, and what to say."""
    if isinstance(error, _MENDABLE):
        return WRONG_USE, str(error).strip()
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return WRONG_USE, _out_of_memory(str(error))
    words = (str(error).strip().splitlines() or ["without a word"])[0]
    return FAILED, (
        f"{type(error).__name__}: {words}; the program did not expect this: run the same command "
        f"with {DEBUG} to see where it comes from, and report that"
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _out_of_memory(words: str) -> str:
    """What a device says that has no memory left, in a line with ways out of it."""
    reason = words.strip().splitlines()[0][:200]
    return (
        f"a device has no memory left ({reason}): nothing that was saved is lost; resume with more "
        "devices, --config.input.kind=streaming, --config.scale.shard_classes=True, "
        "--config.model.remat=True or bfloat16; --dry_run shows what each phase needs"
    )
