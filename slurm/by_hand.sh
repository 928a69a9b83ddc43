# What slurm/*.sbatch have in common: run one task of a stage as launch.py would, and go back into the queue if it was asked to
# stop before its end. Sourced from the folder in which sbatch was called, which must be the project's.
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
  getent hosts "$MASTER_ADDR" >/dev/null || MASTER_ADDR=$SLURM_LAUNCH_NODE_IPADDR
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

  # srun passes signals on to the task, which writes what it has; this shell must live on to requeue the job.
  trap : TERM USR2
  # shellcheck disable=SC2016 # expanded in each of the job's tasks
  srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' task "${task[@]}" &
  local srun=$! code=0
  while kill -0 "$srun" 2>/dev/null; do # a trapped signal ends `wait`, not srun
    wait "$srun"
    code=$?
  done

  # 75: asked to stop. A job that scancel ended is not RUNNING any more and stays cancelled.
  if [ "$code" = 75 ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
  fi
  return "$code"
}
