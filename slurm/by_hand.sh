# What slurm/*.sbatch have in common: run one task of a stage as launch.py would, and requeue the job if the task was asked to
# stop early. Sourced from the folder in which sbatch was called, which must be the project's.
#
#   by_hand STAGE RUN_DIR [SHARD]

by_hand() {
  local stage=$1 run_dir=$2 shard=${3:-}
  local python=${PRODUCT_VQA_PYTHON:-.venv/bin/python}
  command -v "$python" >/dev/null || python=python3
  local task=("$python" -u -m jobs.backends.task "$run_dir" "$stage")
  [ -n "$shard" ] && task+=(--shard "$shard")

  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
  export MASTER_ADDR MASTER_PORT WORLD_SIZE=$SLURM_NTASKS
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # On some sites a node's name in SLURM is not its host name.
  getent hosts "$MASTER_ADDR" >/dev/null || MASTER_ADDR=$SLURM_LAUNCH_NODE_IPADDR
  # From the job id: all nodes agree on it, and two jobs on one node rarely collide.
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

  # srun forwards signals to the task, which saves its work. This shell must survive them to requeue the job.
  trap : TERM USR2
  # --kill-on-bad-exit=0: some sites set 1, and then the first rank that exits with 75 kills the others while they save.
  # --cpus-per-task: since 22.05 srun does not inherit it from sbatch.
  # shellcheck disable=SC2016 # expanded in each of the job's tasks
  srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' task "${task[@]}" &
  local srun=$! code=0
  while kill -0 "$srun" 2>/dev/null; do # a trapped signal interrupts `wait`, not srun
    wait "$srun"
    code=$?
  done

  # 75 is REQUEUE in slurm/process.py: asked to stop early. After scancel the job is no longer RUNNING and stays cancelled.
  if [ "$code" = 75 ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
  fi
  return "$code"
}
