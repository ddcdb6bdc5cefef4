#!/bin/bash
# One training on two nodes, for as long as it takes: sbatch slurm.sh flowers.yaml
# Three minutes before its time is over it pauses, saves and is queued again.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt

config=${1:?Usage: sbatch slurm.sh CONFIG.yaml}
processes=${PROCESSES:-4}                               # on each node: as many as it has GPUs
run=$(basename "$config" .yaml)-$SLURM_JOB_ID           # the job keeps its number when it is queued again

if [ -e "runs/$run/weights/last.pt" ]; then
    words=(--resume "$run")
else                                                    # a folder without last.pt was killed before it had saved
    [ ! -e "runs/$run" ] || mv "runs/$run" "runs/$run-unsaved-${SLURM_RESTART_COUNT:-0}"
    words=(--config "$config" --name "$run")
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$processes" --rdzv_backend c10d \
    --rdzv_endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))" --rdzv_id "$run" --shutdown_timeout 120 \
    -m imgcls.cli train "${words[@]}" &
step=$!

# shellcheck disable=SC2317                             # a trap calls it
pause() { paused=yes; scancel --signal=TERM "$SLURM_JOB_ID"; }      # reaches the processes on all nodes
trap pause USR1 TERM
while kill -0 "$step" 2> /dev/null; do wait "$step"; done              # a trap ends `wait`, not the step
wait "$step"; code=$?

if [ "${paused:-no}" = yes ] && [ "$code" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
