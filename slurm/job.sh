# shellcheck shell=bash
# Sourced by every script here: finds the environment; `train` then runs the job, in slurm/job.py.
set -euo pipefail
trap '' USR1 USR2 # until Python handles them

refuse() {
  echo "$(date '+%F %T') slurm: $*"
  exit 2
}

[[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_CPUS_ON_NODE:-} ]] ||
  refuse "submit this script with sbatch, also within salloc: sbatch slurm/SCRIPT.sbatch RECIPE.yaml"

# A virtual environment or a conda prefix; without either, what was active at sbatch
environment=${ONECURVE_VENV:-.venv}
if [[ -x $environment/bin/python ]]; then
  PATH=$(cd "$environment/bin" && pwd):$PATH
  unset PYTHONHOME
elif [[ -n ${ONECURVE_VENV:-} ]]; then
  refuse "ONECURVE_VENV: there is no Python environment in '$environment'."
fi
python -c 'import onecurve' 2>/dev/null ||
  refuse "onecurve is not installed in $environment: run make venv, or set ONECURVE_VENV to where it is."

# train [--each_seed] LAUNCH_FILE ...: see slurm/job.py. In place of this shell, so that signals to the batch script
# reach it.
train() {
  exec python -m slurm.job "$@"
}
