#!/usr/bin/env bash
# Trains, evaluates and saves a model on the embedded synthetic people.
#
#   bash scripts/demo.sh            CCAFL, minutes on two CPU cores
#   bash scripts/demo.sh calr       CALR, likewise
#   bash scripts/demo.sh tfclip     TF-CLIP, likewise, on walks of the same people
#   bash scripts/demo.sh cclnet     CCLNet, likewise, on the same people in visible and infrared
#   bash scripts/demo.sh --smoke    every stage and phase, a few steps each, tiny data
#   bash scripts/demo.sh --bench    four times the steps, up to half an hour (CCAFL)
#
# The method comes first: bash scripts/demo.sh calr --smoke. Further arguments go to
# scripts/train.py, for example --config.seed=2. The run lands in runs/demo (runs/demo_smoke,
# runs/demo_calr and so on). A run that was stopped or killed goes on with the same command; a
# finished one is replaced, and --overwrite replaces any.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

recipe=configs/ccafl_demo.py
run=runs/demo
case "${1:-}" in
  calr | tfclip | cclnet)
    recipe="configs/$1_synthetic.py"
    run="runs/demo_$1"
    shift
    ;;
  "" | -*) ;;
  *)
    echo "error: unknown method '$1': choose calr, tfclip, cclnet, or none for CCAFL" >&2
    exit 2
    ;;
esac
variant=""
case "${1:-}" in
  --smoke | --bench) variant="${1#--}"; shift ;;
  --help | -h) sed -n '2,16s/^# \{0,1\}//p' scripts/demo.sh; exit 0 ;;
esac
again="--rerun"
for word in "$@"; do
  [ "$word" != "--overwrite" ] || again=""
done
exec "$python" scripts/train.py --config "$recipe${variant:+:$variant}" \
  --workdir "$run${variant:+_$variant}" $again "$@"
