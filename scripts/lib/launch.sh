# shellcheck shell=bash
# Puts a training command together and starts it: one process on a CPU, torchrun on GPUs. Sourced
# after common.sh, from the repository root; only defines names.
#
# Variables: NUM_GPUS (of a machine; all that are there; 0 is the CPU), NNODES NODE_RANK MASTER_ADDR
# MASTER_PORT (several machines), PYTHON. `--dry-run` among a script's arguments prints the command,
# says what it lacks, and runs nothing.

flags=()
dry_run=0

# Add flags with their values; a flag that is there already is replaced.
set_flags() {
  while (($#)); do
    [[ $1 == --* ]] || die "expected a flag such as --learning_rate, found: $1"
    drop_flag "$1"
    flags+=("$1")
    shift
    while (($#)) && [[ $1 != --* ]]; do
      flags+=("$1")
      shift
    done
  done
}

# Whether two words are the same flag, however they are spelled: --a-b=c and --a_b are.
is_flag() {
  local one=${1%%=*} other=${2%%=*}
  [[ ${one//-/_} == "${other//-/_}" ]]
}

drop_flag() {
  local word skip=0 kept=()
  for word in ${flags[@]+"${flags[@]}"}; do
    if [[ $word == --* ]]; then
      skip=0
      ! is_flag "$word" "$1" || skip=1
    fi
    ((skip)) || kept+=("$word")
  done
  flags=(${kept[@]+"${kept[@]}"})
}

# The value that a flag has in the end; nothing if it is not there.
flag_value() {
  local i
  for ((i = 0; i < ${#flags[@]}; i++)); do
    [[ ${flags[i]} == --* ]] || continue
    is_flag "${flags[i]}" "$1" || continue
    if [[ ${flags[i]} == *=* ]]; then
      printf '%s' "${flags[i]#*=}"
    else
      printf '%s' "${flags[i + 1]:-}"
    fi
  done
}

# Flags of the command line, which win over all others; --dry-run is ours.
set_flags_of_user() {
  local word rest=()
  for word; do
    if [[ $word == --dry-run ]]; then dry_run=1; else rest+=("$word"); fi
  done
  set_flags ${rest[@]+"${rest[@]}"}
}

# Whether a model has a projector of its own: a folder's config.json says it, a Hub id has "llava" in
# its name, by which LLaVA itself goes.
is_llava_checkpoint() {
  if [[ -d $1 ]]; then
    grep -qs '"mm_vision_tower"' "$1/config.json"
  else
    [[ $1 == *[Ll][Ll][Aa][Vv][Aa]* ]]
  fi
}

# The projector of stage 1, unless the user named another or the model brings its own. Comes after
# the flags of the user.
# usage: set_default_projector FILE
set_default_projector() {
  local model
  model=$(flag_value --model_name_or_path)
  [[ -z $(flag_value --pretrain_mm_mlp_adapter) ]] || return 0
  if is_llava_checkpoint "$model"; then
    say "Going on from the projector of $model." >&2
  else
    set_flags --pretrain_mm_mlp_adapter "$1"
  fi
}

num_gpus_here() {
  local found=0 visible
  if command -v nvidia-smi >/dev/null; then
    found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
  fi
  # Of these, only some may be visible: "0,2"; an empty list and -1 hide all.
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
    [[ ${visible[0]:-} != -1 ]] || visible=()
    ((found <= ${#visible[@]})) || found=${#visible[@]}
  fi
  printf '%s' "$found"
}

# What the place of the run decides; a flag of the user's comes later and wins.
# usage: set_device_flags NUM_GPUS ZERO_CONFIG (or none)
set_device_flags() {
  [[ $1 =~ ^[0-9]+$ ]] || die "NUM_GPUS is '$1', expected a number"
  if (($1 == 0)); then
    set_flags --use_cpu True --bf16 False --tf32 False
  elif [[ -n $2 && $2 != none ]]; then
    set_flags --deepspeed "$2"
  fi
}

# Processes that train together.
# usage: num_processes NUM_GPUS
num_processes() {
  [[ ${NNODES:-1} =~ ^[1-9][0-9]*$ ]] || die "NNODES is '$NNODES', expected a number"
  printf '%s' $((${NNODES:-1} * ($1 > 0 ? $1 : 1)))
}

# What a run lacks ends it before it starts; a dry run only says it.
lacks() { if ((dry_run)); then warn "$*"; else die "$*"; fi; }

# Miss files and packages before Python starts, once per GPU.
# usage: check_inputs PYTHON
check_inputs() {
  local path
  path=$(flag_value --data_path)
  [[ -z $path || -e $path ]] || lacks "--data_path $path (DATA_PATH): there is no such file"
  path=$(flag_value --image_folder)
  [[ -z $path || -d $path ]] || lacks "--image_folder $path (IMAGE_FOLDER): there is no such folder"
  path=$(flag_value --pretrain_mm_mlp_adapter)
  [[ -z $path || -f $path ]] ||
    lacks "$path is not there: run stage 1 first (scripts/v1_5/lrm_pretrain.sh, or LLaVA's" \
      "pretrain.sh), or name another --pretrain_mm_mlp_adapter"
  [[ -z $(flag_value --deepspeed) ]] || need_package "$1" deepspeed train --deepspeed
  [[ $(flag_value --lora_enable) != [Tt]rue ]] || need_package "$1" peft train --lora_enable
  [[ $(flag_value --bits) != [48] ]] || need_package "$1" bitsandbytes gpu --bits
}

# usage: need_package PYTHON PACKAGE EXTRA FLAG
need_package() {
  "$1" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$2') is None)" ||
    lacks "$4 needs the package $2, which is not installed: bash scripts/setup.sh --extras $3"
}

# Run a Python module with the flags, once per GPU. Does not come back.
# usage: launch MODULE NUM_GPUS
launch() {
  local module=$1 num_gpus=$2 python command
  python=$(find_python .venv)
  check_inputs "$python"
  command=("$python")
  if (($(num_processes "$num_gpus") > 1 || num_gpus > 0)); then
    command+=(-m torch.distributed.run --nproc_per_node "$((num_gpus > 0 ? num_gpus : 1))")
    if ((${NNODES:-1} > 1)); then
      [[ -n ${MASTER_ADDR:-} && -n ${NODE_RANK:-} ]] ||
        die "NNODES is $NNODES: set MASTER_ADDR and NODE_RANK, too"
      command+=(--nnodes "$NNODES" --node_rank "$NODE_RANK"
        --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
    elif [[ -n ${MASTER_PORT:-} ]]; then
      command+=(--master_port "$MASTER_PORT")
    else
      command+=(--standalone)
    fi
  fi
  command+=(-m "$module")
  if ((dry_run)); then
    print_command "${command[@]}"
    exit 0
  fi
  need_packages "$python"
  export_process_settings
  use_python "$python"
  exec "${command[@]}" "${flags[@]}"
}

# Print a command and the flags as one may paste them: one flag a line.
print_command() {
  local word line
  printf -v line '%q ' "$@"
  line=${line% }
  for word in "${flags[@]}"; do
    if [[ $word == --* ]]; then
      printf '%s \\\n' "$line"
      line="    "
    else
      line+=" "
    fi
    printf -v word '%q' "$word"
    line+=$word
  done
  printf '%s\n' "$line"
}
