#!/bin/bash
# One study, worked at by eight jobs: sbatch slurm_sweep.sh flowers.yaml
# Each takes the next trial until there are fifty; more of them may come, and any may go, at any time.
#SBATCH --array=1-8
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.txt

config=${1:?Usage: sbatch slurm_sweep.sh CONFIG.yaml}
storage=${STORAGE:?A database that all nodes reach: export STORAGE=postgresql+psycopg2://user@host/studies}

me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID           # SLURM_JOB_ID of the last element means all of them

srun imgcls-sweep "$config" "lr=loguniform(1e-4,1e-1)" 'optimizer.type=[sgd,adamw]' \
    --name rates --trials 50 --storage "$storage" &
step=$!

# shellcheck disable=SC2317                             # a trap calls it
pause() { paused=yes; scancel --signal=TERM "$me"; }
trap pause USR1 TERM
while kill -0 "$step" 2> /dev/null; do wait "$step"; done
wait "$step"; code=$?

if [ "${paused:-no}" = yes ] && [ "$code" != 0 ]; then scontrol requeue "$me"; fi
exit "$code"
