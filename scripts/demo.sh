#!/usr/bin/env bash
# Trains, evaluates and saves a CCAFL model on the embedded synthetic people.
#
#   bash scripts/demo.sh            minutes on two CPU cores
#   bash scripts/demo.sh --smoke    every stage and phase, a few steps each, tiny data
#   bash scripts/demo.sh --bench    four times the steps, up to half an hour
#
# Further arguments go to scripts/train.py, for example --config.seed=2. The run lands in
# runs/demo (runs/demo_smoke, runs/demo_bench). A run that was stopped or killed goes on with the
# same command; a finished one is replaced, and --overwrite replaces any.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

variant=""
case "${1:-}" in
  --smoke | --bench) variant="${1#--}"; shift ;;
  --help | -h) sed -n '2,11s/^# \{0,1\}//p' scripts/demo.sh; exit 0 ;;
esac
again="--rerun"
for word in "$@"; do
  [ "$word" != "--overwrite" ] || again=""
done
exec "$python" scripts/train.py --config "configs/ccafl_demo.py${variant:+:$variant}" \
  --workdir "runs/demo${variant:+_$variant}" $again "$@"
