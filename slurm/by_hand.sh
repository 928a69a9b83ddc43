# What slurm/*.sbatch and the scripts of a dry run have in common: run one task as launch.py would, write its log into the run, and
# requeue the job if the task was asked to stop early. Sourced from any folder.
#
#   by_hand STEP RUN_DIR [SHARD]
#   run_task LOG_FOLDER SHARD_OR_"" COMMAND...

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

by_hand() {
  local step=$1 run_dir=$2 shard=${3:-}
  local python=${PRODUCT_VQA_PYTHON:-$project/.venv/bin/python}
  command -v "$python" >/dev/null || python=python3
  local task=("$python" -u -m jobs.backends.task "$run_dir" "$step")
  [ -n "$shard" ] && task+=(--shard "$shard")
  run_task "$run_dir/logs/${step//:/-}" "$shard" "${task[@]}"
}

run_task() {
  local logs=$1 shard=$2 name=task id=$SLURM_JOB_ID
  shift 2
  [ -n "$shard" ] && name=$(printf '%05d' "$shard")
  [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  # Where the run's log cannot be written, what the task says is at least in SLURM's own output.
  local log=/dev/null
  mkdir -p "$logs" && log=$logs/$name.$(date +%Y%m%dT%H%M%S).job$id.log
  echo "# SLURM job $id, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURMD_NODENAME, submitted in $SLURM_SUBMIT_DIR" >"$log"

  export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" WORLD_SIZE=$SLURM_NTASKS
  # This script runs on the first node, where rank 0 will be. From the job id: all nodes agree on the port, and two jobs on one node
  # rarely collide.
  export MASTER_ADDR=$SLURMD_NODENAME MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

  # srun forwards signals to the task, which saves its work. This shell must survive them to requeue the job.
  trap : TERM USR2
  # --kill-on-bad-exit=0: some sites set 1, and then the first rank that exits with 75 kills the others while they save.
  # --cpus-per-task: since 22.05 srun does not inherit it from sbatch.
  # On some sites a node's name in SLURM is not its host name; srun, on the first node, then tells its address to each task.
  # shellcheck disable=SC2016 # expanded in each of the job's tasks
  srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c '
      export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
      getent hosts "$MASTER_ADDR" >/dev/null || export MASTER_ADDR=${SLURM_SRUN_COMM_HOST:-$SLURM_LAUNCH_NODE_IPADDR}
      exec "$@"' task "$@" > >(tee -a "$log") 2>&1 &
  local srun=$! code=0
  while kill -0 "$srun" 2>/dev/null; do # a trapped signal interrupts `wait`, not srun
    wait "$srun"
    code=$?
  done

  # 75 is REQUEUE in slurm/process.py: asked to stop early. After scancel the job is no longer RUNNING and stays cancelled.
  # By 12_3, not by SLURM_JOB_ID: one element of each array has the id of the whole array in it.
  if [ "$code" = 75 ] && [ "$(squeue --noheader --format=%T --jobs="$id")" = RUNNING ]; then
    scontrol requeue "$id" && sleep 60
  fi
  return "$code"
}
