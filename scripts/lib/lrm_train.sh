# shellcheck shell=bash
# What the two stages on a mixture share: a preset, variables and the command line become flags.
# Sourced after launch.sh, from the repository root; only defines names.
#
# A preset sets: model, tower, version, data_of_<stage>, zero_of_<stage>, samples_of_<stage> (in an
# optimizer step), num_gpus, and the arrays flags_of_preset, flags_of_pretrain, flags_of_finetune.
# shellcheck disable=SC2154  # a preset sets these variables

presets_dir=scripts/v1_5/presets
built_in=playground/data/emoji_scenes/corpus

list_presets() {
  local file names=()
  for file in "$presets_dir"/*.sh; do
    file=${file##*/}
    names+=("${file%.sh}")
  done
  printf '%s' "${names[*]}"
}

# usage: load_preset NAME
load_preset() {
  if [[ ! $1 =~ ^[a-z0-9.-]+$ || ! -f $presets_dir/$1.sh ]]; then
    die "unknown preset '$1'; choose from: $(list_presets)"
  fi
  # shellcheck source=/dev/null
  . "$presets_dir/$1.sh"
}

# Flags of a stage: what the paper's runs have in common, variables, then the preset's.
# usage: set_flags_of_stage STAGE OUTPUT_DIR
set_flags_of_stage() {
  local stage=$1 output_dir=$2 data
  local data_of_stage=data_of_$stage zero_of_stage=zero_of_$stage flags_of_stage="flags_of_${stage}[@]"
  data=${DATA_PATH:-${!data_of_stage}}
  set_flags \
    --model_name_or_path "${MODEL_NAME_OR_PATH:-$model}" \
    --version "$version" \
    --vision_tower "${VISION_TOWER:-$tower}"
  if [[ $data == *.json || $data == *.jsonl ]]; then
    set_flags --data_path "$data"
  elif [[ -z ${DATA_PATH:-} && -n ${MIXTURE:-} ]] && grep -qs '^\[\[corpora\]\]' "$MIXTURE"; then
    set_flags --mixture_path "$MIXTURE" # it names its corpora
  else
    set_flags --corpus_path "$data" --mixture_path "${MIXTURE:-scripts/v1_5/mixtures/$stage.toml}"
  fi
  [[ -z ${LANGUAGES:-} ]] || set_flags --languages "$LANGUAGES"
  [[ -z ${IMAGE_FOLDER:-} ]] || set_flags --image_folder "$IMAGE_FOLDER"
  set_flags \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --output_dir "$output_dir" \
    --num_train_epochs 1 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --report_to "${REPORT_TO:-none}"
  set_flags "${flags_of_preset[@]}"
  set_flags "${!flags_of_stage}"
  # a preset's number of steps is meant for its own corpus, which may be in other languages
  case $(flag_value --data_path)$(flag_value --corpus_path) in
    "${!data_of_stage}" | "$built_in"/chosen/*/"${!data_of_stage##*/}") ;;
    *) drop_flag --max_steps ;;
  esac
  gpus=${NUM_GPUS:-$(default_num_gpus)}
  set_device_flags "$gpus" "${DEEPSPEED-${!zero_of_stage}}"
}

# Deal a step's samples to the processes there are: the preset's batch at most, the rest by
# accumulation. A user who gives either flag decides for himself. Comes after the user's flags.
# usage: set_batch_flags STAGE [arguments of the script]
set_batch_flags() {
  local samples_of_stage=samples_of_$1 word samples processes share batch
  samples=${!samples_of_stage}
  processes=$(num_processes "$gpus")
  shift
  for word; do
    if is_flag "$word" --per_device_train_batch_size || is_flag "$word" --gradient_accumulation_steps; then
      samples=
    fi
  done
  batch=$(flag_value --per_device_train_batch_size)
  if [[ -n $samples ]]; then
    ((samples % processes == 0)) ||
      die "a step of $samples samples cannot be dealt evenly to $processes processes: use a number" \
        "of GPUs that divides $samples, or choose --per_device_train_batch_size and" \
        "--gradient_accumulation_steps yourself"
    share=$((samples / processes))
    ((batch <= share)) || batch=$share
    while ((share % batch)); do batch=$((batch - 1)); done
    set_flags --per_device_train_batch_size "$batch" --gradient_accumulation_steps $((share / batch))
  fi
  share=$(flag_value --gradient_accumulation_steps)
  say "Samples per step: $((processes * batch * ${share:-1})) (processes: $processes, batch: $batch," \
    "gradient accumulation: ${share:-1})" >&2
}

# All GPUs of the machine, or as many as the preset can use.
default_num_gpus() {
  local found limit=${num_gpus:-}
  found=$(num_gpus_here)
  if [[ -n $limit ]] && ((found > limit)); then found=$limit; fi
  printf '%s' "$found"
}

# Make or miss what only these scripts read; `launch` misses the rest.
prepare_inputs() {
  local corpus path python
  corpus=$(flag_value --corpus_path)
  if [[ $corpus == "$built_in"/* && ! -f $corpus/corpus.toml ]] && ((!dry_run)); then
    python=$(find_python .venv)
    need_packages "$python"
    say "Unpacking the built-in corpus."
    "$python" -m lrm_ext.cli corpus unpack-emoji
  fi
  if [[ -n $corpus && $corpus != "$built_in"/* && ! -f $corpus/corpus.toml ]]; then
    lacks "$corpus is no corpus: set DATA_PATH to a corpus folder or a LLaVA JSON file" \
      "(docs/data.md)"
  fi
  for path in "$(flag_value --model_name_or_path)" "$(flag_value --vision_tower)"; do
    if [[ $path == playground/models/smollm2 && ! -d $path ]]; then
      lacks "$path is not there: fetch it with: pip install gguf && python scripts/get_smollm2.py"
    elif [[ $path == playground/models/* && ! -d $path ]]; then
      lacks "$path is not there: make it with: lrm mini build-base"
    fi
  done
}
