#!/usr/bin/env bash
# From a fresh clone to a model that answers in ten languages: bash scripts/quickstart.sh
# In languages of your choice: LANGUAGES=hr,hi,ar bash scripts/quickstart.sh
#
# Stages: environment, built-in corpus, the paper's two training stages on preset `mini`, evaluation
# with its report. Every stage says for itself whether it is done, so that the same command goes on where an
# earlier run stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

NUM_STAGES=5

usage() {
  cat <<'TEXT'
usage: bash scripts/quickstart.sh [--fresh] [--smoke] [--no-install]

  --fresh        remove what an earlier run trained and start over
  --smoke        a cut of a few minutes that shows that every stage runs (a few training steps, a
                 few questions): its scores mean nothing. Same as QUICKSTART_SMOKE=1
  --no-install   use the active Python environment instead of making .venv

Variables: LANGUAGES=hr,hi,ar names the languages besides English (all: every language that the
built-in corpus has words of), the paper's ten by default; QUICKSTART_VENV=DIR names another
environment folder than .venv. Those of scripts/setup.sh hold here, too.
TEXT
}

venv=${QUICKSTART_VENV:-.venv}
smoke=${QUICKSTART_SMOKE:-0}
fresh=0
do_install=1
while (($#)); do
  case $1 in
    --fresh) fresh=1 ;;
    --smoke | --limit) smoke=1 ;;
    --no-install) do_install=0 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done

# The cut has its own folders: its few steps must not pass for the real run.
if [[ $smoke == 1 ]]; then run=runs/smoke; else run=runs/mini; fi
languages=${LANGUAGES:-}
languages=${languages// /}
# Each choice of languages has its own run.
[[ -z $languages ]] || run=$run-${languages//,/-}
pretrained=$run-pretrain

train_flags=()
eval_flags=()
if [[ $smoke == 1 ]]; then
  # no feature cache: it would encode all images for a few steps
  train_flags=(--max_steps 20 --feature_cache off)
  eval_flags=(--limit 24)
  [[ -n $languages ]] || eval_flags+=(--languages "en,hr,zh")
fi
if [[ -n $languages && $languages != all ]]; then
  eval_flags+=(--languages "en,$languages")
fi

stage=0
title=
begin() {
  stage=$((stage + 1))
  title=$1
  heading "[$stage/$NUM_STAGES] $title"
}

on_exit() {
  local code=$?
  ((code == 0 || stage == 0)) && return
  printf '\n%sStopped%s in stage %d of %d (%s), exit code %d.\n' \
    "$RED" "$PLAIN" "$stage" "$NUM_STAGES" "$title" "$code" >&2
  say "Run the same command again: it goes on where this one stopped." >&2
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Run a training stage unless its result is there: it writes COMPLETE last.
# usage: train SCRIPT NAME_OF_CORPUS OUTPUT_DIR [flags]
train() {
  local script=$1 data=$corpus/$2 folder=$3
  shift 3
  if [[ -e $folder/COMPLETE ]]; then
    say "Done before: $folder is complete. (--fresh trains again)"
    return
  fi
  DATA_PATH=$data PRESET=mini OUTPUT_DIR=$folder bash "scripts/v1_5/$script" "$@" ${train_flags[@]+"${train_flags[@]}"}
  [[ -e $folder/COMPLETE ]] || die "scripts/v1_5/$script ended without a result in $folder"
}

SECONDS=0
if ((fresh)); then
  say "Removing $pretrained and $run."
  rm -rf -- "$pretrained" "$run"
fi
export_process_settings

begin "Python environment"
if ((do_install)); then
  bash scripts/setup.sh --venv "$venv" --extras serve
  python=$venv/bin/python
else
  python=$(find_python "$venv")
  say "Using $python."
fi
use_python "$python"
# The training scripts look for an environment of their own otherwise.
export PYTHON="$python"
lrm=("$python" -m lrm_ext.cli)
installed=$SECONDS

begin "Pictures and questions in ${languages:-ten languages}"
unpacked=$("${lrm[@]}" corpus unpack-emoji ${languages:+--languages "$languages"})
say "$unpacked"
# its first line names the folder of the corpora
corpus=${unpacked%%$'\n'*}
corpus=${corpus#"$PWD"/}

begin "Pre-training: projector only"
train lrm_pretrain.sh pretrain "$pretrained"

begin "Fine-tuning: projector and language model"
train lrm_finetune.sh finetune "$run" --pretrain_mm_mlp_adapter "$pretrained/mm_projector.bin"

begin "Evaluation: with the picture, and blind"
"${lrm[@]}" eval --model "$run" ${eval_flags[@]+"${eval_flags[@]}"}

say ""
say "${GREEN}Done${PLAIN} in $(duration "$SECONDS"), $(duration $((SECONDS - installed))) of it after the environment."
if [[ $smoke == 1 ]]; then
  say "This was the short cut: every stage runs, the scores mean nothing."
fi
command=$(dirname "$python")/lrm
[[ -x $command ]] || command="$python -m lrm_ext.cli"
say "Talk to the model:  ${BOLD}$command demo --model $run${PLAIN}"
