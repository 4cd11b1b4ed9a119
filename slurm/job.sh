# shellcheck shell=bash
# Sourced by every script here: one srun task a rank, and what becomes of the job when they have ended.
set -euo pipefail

refuse() {
  echo "slurm: $*" >&2
  exit 2
}

# Prints the ranks each node gets: its GPUs, or else the tasks that were asked for, or one.
ranks_per_node() {
  local nodes=$SLURM_JOB_NUM_NODES ranks=${SLURM_GPUS_ON_NODE:-}
  local tasks=${SLURM_NTASKS:-$((nodes * ${ranks:-1}))}
  ((tasks % nodes == 0)) || refuse "$tasks tasks do not spread evenly over $nodes nodes."
  : "${ranks:=$((tasks / nodes))}"
  ((tasks == nodes * ranks)) || refuse "$tasks task(s) were asked for, but a GPU gets a rank, and $nodes node(s)" \
    "of $ranks GPU(s) have $((nodes * ranks)): leave out --ntasks, --ntasks-per-node and --gpus-per-task."
  ((SLURM_CPUS_ON_NODE >= ranks)) || refuse "$ranks ranks a node need as many CPUs and have $SLURM_CPUS_ON_NODE:" \
    "ask for more with --cpus-per-gpu or --cpus-per-task."
  echo "$ranks"
}

# Exports what `accelerate launch` tells its processes, by asking it, and a port that is free here, where rank 0 runs.
ask_accelerate() {
  local told name value
  told=$(accelerate launch --config_file "$1" --num_machines 1 --num_processes 1 --main_process_port 0 --no_python env) ||
    refuse "accelerate launch does not take $1."
  unset MASTER_PORT
  while IFS='=' read -r name value; do
    case $name in ACCELERATE_* | NCCL_* | MASTER_PORT) export "$name=$value" ;; esac
  done <<<"$told"
}

# train CONFIG RECIPE ...: run train.py as one world, then finish, fail, or put the job back into the queue.
train() {
  local config=${launch_file:-$1} code=0 verdict=0 ranks before
  shift
  ranks=$(ranks_per_node)
  before=$(python slurm/verdict.py before "$@")
  ask_accelerate "$config"
  run_ranks "$config" "$ranks" "$@" || code=$?
  python slurm/verdict.py after "$before" "$code" "$@" || verdict=$?
  if ((verdict == 75)); then
    local job=$SLURM_JOB_ID # the last task of an array has the array's own id
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    scontrol requeue "$job" || echo "slurm: the job could not be requeued; submit it again to go on." >&2
  fi
  exit "$verdict"
}

# srun starts the ranks itself, so that Slurm's signals reach Python, and their exit codes are Python's.
run_ranks() {
  local config=$1 ranks=$2 start='exec python train.py "$@"'
  shift 2
  local world=$((SLURM_JOB_NUM_NODES * ranks)) cpus=$((SLURM_CPUS_ON_NODE / ranks))
  if [[ -n ${MASTER_PORT:-} ]]; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR WORLD_SIZE=$world LOCAL_WORLD_SIZE=$ranks
    # shellcheck disable=SC2016  # each task has its own
    start='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; '$start
  elif ((world > 1)); then
    refuse "$config starts one process and there is room for $world ranks: give another --config_file."
  fi
  echo "slurm: job $SLURM_JOB_ID, restarted ${SLURM_RESTART_COUNT:-0} times: $config," \
    "$SLURM_JOB_NUM_NODES node(s) x $ranks rank(s) on $SLURM_JOB_NODELIST"
  # Every rank sees its node's GPUs and picks its own. Where one fails, the others have time to say what they know:
  # killed, they could not, and srun's exit code would tell of the signal
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus} srun --export=ALL --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$world" \
    --ntasks-per-node="$ranks" --cpus-per-task="$cpus" --gpu-bind=none --kill-on-bad-exit=0 --wait=300 \
    bash -c "$start" rank "$@"
}

environment=${ONECURVE_VENV:-.venv}
# shellcheck disable=SC1091
[[ ! -f $environment/bin/activate ]] || source "$environment/bin/activate"
command -v accelerate >/dev/null ||
  refuse "onecurve is not installed in $environment: run make venv, or set ONECURVE_VENV to where it is."
launch_file=
if [[ ${1:-} == --config_file ]]; then
  [[ -f ${2:-} ]] || refuse "--config_file: there is no file '${2:-}'."
  launch_file=$2
  shift 2 # of the script's own arguments
fi
