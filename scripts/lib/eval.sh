# shellcheck shell=bash
# Runs LLaVA's benchmarks: asks a model, on one GPU or a chunk on each, and scores or converts its
# answers. Sourced after common.sh, from the repository root; only defines names.
#
# Variables: MODEL_PATH (liuhaotian/llava-v1.5-13b), MODEL_BASE, CKPT (name of the answers, by
# default the model's), CONV_MODE, EVAL_DIR (./playground/data/eval), CUDA_VISIBLE_DEVICES, PYTHON.
# `--dry-run` among a script's arguments prints the commands and runs nothing; other flags go to the
# script that asks the model, e.g. --batch-size 16, --fresh.
# shellcheck disable=SC2034  # some names are for those who source this file

dry_run=0
asker_flags=()

# set_up_eval <conversation template> [arguments of the script]
set_up_eval() {
  local conv_mode=${CONV_MODE:-$1} word
  shift
  for word in "$@"; do
    if [[ $word == --dry-run ]]; then dry_run=1; else asker_flags+=("$word"); fi
  done
  model_path=${MODEL_PATH:-liuhaotian/llava-v1.5-13b}
  ckpt=${CKPT:-$(basename "$model_path")}
  eval_dir=${EVAL_DIR:-./playground/data/eval}
  python=$(find_python .venv)
  python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")  # some scorers run elsewhere
  need_packages "$python"
  use_python "$python"
  model_flags=(--model-path "$model_path")
  [[ -z ${MODEL_BASE:-} ]] || model_flags+=(--model-base "$MODEL_BASE")
  model_flags+=(--temperature 0 --conv-mode "$conv_mode")
}

# Run a command, or print it.
run() {
  if ((dry_run)); then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Refuse to spend hours on a model whose answers could not be scored.
need_file() {
  ((dry_run)) || [[ -e $1 ]] || die "$1 is missing: $2"
}

need_folder_for() { ((dry_run)) || mkdir -p "$(dirname "$1")"; }

# ask <module> <answers file> [flags]
ask() {
  local module=$1 answers=$2
  shift 2
  run "$python" -m "llava.eval.$module" "${model_flags[@]}" --answers-file "$answers" "$@" \
    ${asker_flags[@]+"${asker_flags[@]}"}
}

# ask_on_all_gpus <module> <folder> [flags]: the answers are <folder>/merge.jsonl in the end.
ask_on_all_gpus() {
  local module=$1 folder=$2 gpus=() pids=() files=() failed=0 i
  shift 2
  IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES:-0}"
  for i in "${!gpus[@]}"; do
    files+=("$folder/${#gpus[@]}_$i.jsonl")
    if ((dry_run)); then
      printf 'CUDA_VISIBLE_DEVICES=%s ' "${gpus[i]}"
      ask "$module" "${files[i]}" "$@" --num-chunks "${#gpus[@]}" --chunk-idx "$i"
    else
      CUDA_VISIBLE_DEVICES=${gpus[i]} ask "$module" "${files[i]}" "$@" \
        --num-chunks "${#gpus[@]}" --chunk-idx "$i" &
      pids+=("$!")
    fi
  done
  ((dry_run)) && return
  for i in "${!pids[@]}"; do
    wait "${pids[i]}" || { warn "chunk $i of ${#gpus[@]} failed"; failed=1; }
  done
  ((!failed)) || die "not all questions are answered; the same command goes on where it stopped"
  cat "${files[@]}" >"$folder/merge.jsonl.partial"
  mv "$folder/merge.jsonl.partial" "$folder/merge.jsonl"
}
