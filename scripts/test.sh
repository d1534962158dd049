#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest, for example: bash scripts/test.sh -m slow
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

exec "$python" -m pytest "$@"
