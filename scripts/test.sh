#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest, for example: bash scripts/test.sh -m slow
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# Two files at a time: most of the time is compilation, which uses one core.
exec "$python" -m pytest --numprocesses auto --dist loadfile "$@"
