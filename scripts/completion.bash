# Completes recipes and options of the commands: source scripts/completion.bash
# Written by scripts/completion.py.
_ccafl_jax() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}" options=""
  case "${COMP_WORDS[1]}" in
    scripts/ablate.py) options="--help --debug --workdir --config --seeds --processes --json" ;;
    scripts/ablate_calr.py) options="--help --debug --workdir --config --seeds --processes --json" ;;
    scripts/ablate_cclnet.py) options="--help --debug --workdir --config --seeds --processes --json" ;;
    scripts/ablate_tfclip.py) options="--help --debug --workdir --config --seeds --processes --json" ;;
    scripts/average.py) options="--help --debug --json" ;;
    scripts/calibrate.py) options="--help --debug --features --out --fpir --fpr --rank --hold-out --seed --metric --protocol --with-distractors --model" ;;
    scripts/compare.py) options="--help --debug --plot --bootstrap --json" ;;
    scripts/completion.py) options="--help --debug --check" ;;
    scripts/config_diff.py) options="--help --debug --check --json" ;;
    scripts/convert_weights.py) options="--help --debug --checkpoint --out --to-safetensors --image-size --stride --heads --feature --camera-scale --activation --mean --std" ;;
    scripts/embed.py) options="--help --debug --model --batch --dtype --devices --camera --modality --flip --images --queries --out --overwrite --split --every --skip-unreadable" ;;
    scripts/evaluate.py) options="--help --debug --workdir --checkpoint --features --cross-domain --root --data --dataset --epoch --batch --flip --frames --clips --split --orientation --cache --no-cache --save-features --protocol --ap --no-match --same-camera --mode --shots --draw --trials --direction --with-distractors --multi-query --tracks --published-lists --metric --rerank --expand --expand-gallery --bootstrap --camera-pairs --top --save-results --figures --json --no-report" ;;
    scripts/export.py) options="--help --debug --from --run --out --images --count --formats --dtype --epoch --overwrite" ;;
    scripts/figures.py) options="--help --debug" ;;
    scripts/growth.py) options="--help --debug --workdir --config --seeds --processes --json" ;;
    scripts/overlap.py) options="--help --debug --workdir --config --seeds --processes --json --overlaps" ;;
    scripts/performance.py) options="--help --debug --check" ;;
    scripts/prepare_data.py) options="--help --debug --dataset --raw --out --arrays --check --allow-partial --skip-broken --distractors --overwrite --workers" ;;
    scripts/presets.py) options="--help --debug --workdir --config --seeds --processes --json" ;;
    scripts/rehearse.py) options="--help --debug --names --workdir --config --seed --scale --json" ;;
    scripts/report.py) options="--help --debug --workdir --out --root --data --lists --perplexity --no-rankings" ;;
    scripts/results.py) options="--help --debug --check" ;;
    scripts/search.py) options="--help --debug --gallery --index --query --query-features --model --batch --dtype --devices --camera --modality --skip-unreadable --compress --rescore --metric --save-index --lean --overwrite --top --threshold --limit --sheet --html --json" ;;
    scripts/stress_kills.py) options="--help --debug --workdir --kills --seed --jobs --config --json" ;;
    scripts/synthetic_audit.py) options="--help --debug --seeds --steps --clip --json --render-docs" ;;
    scripts/train.py) options="--help --debug --config --workdir --resume --overwrite --rerun --allow_changes --stages --activation --dry_run --print_config --profile --compilation_cache --deterministic --no-report --coordinator --processes --process_id --heartbeat_seconds --shutdown_seconds --connect_seconds" ;;
    scripts/tsne.py) options="--help --debug --workdir --out --stages --perplexity --seed" ;;
    scripts/tutorial.py) options="--help --debug --out --crops --smoke" ;;
  esac
  COMPREPLY=()
  if [ -n "$options" ] && [ "$before" = --config ]; then
    mapfile -t COMPREPLY < <(compgen -G "configs/$word*.py"; compgen -G "$word*.py")
  elif [ "${word#-}" != "$word" ]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
  fi
}
complete -o default -F _ccafl_jax python python3
