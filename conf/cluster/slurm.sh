#!/usr/bin/env bash
# A run on SLURM: a Ray cluster over the job's nodes, then the command given.
#   sbatch --nodes=4 --gpus-per-node=8 conf/cluster/slurm.sh \
#     orchestrator run +exp=wfpp_laion source.uri='/lustre/laion400m/{00000..41455}.tar' store=/lustre/store out=/lustre/runs/wfpp
# Submitted again after a time limit or a lost node it goes on where it stopped; SIGTERM a minute before the limit makes
# a checkpoint.
#SBATCH --job-name=orchestrator
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
set -euo pipefail

port=${RAY_PORT:-6379}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS="$head:$port" RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
gpus=${SLURM_GPUS_ON_NODE:-0}

# one step holds the cluster: its first node is the head, the others wait for it
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -c "
  if [ \"\$(hostname -s)\" = \"${head%%.*}\" ]; then
    unset RAY_ADDRESS
    exec ray start --head --port=$port --num-cpus=$cpus --num-gpus=$gpus --block
  fi
  until ray health-check --address=$head:$port 2>/dev/null; do sleep 2; done
  exec ray start --address=$head:$port --num-cpus=$cpus --num-gpus=$gpus --block
" &
cluster=$!
until [ "$(ray list nodes --filter state=ALIVE --format json 2>/dev/null | grep -c '"node_id"')" -ge "$SLURM_NNODES" ]; do
  kill -0 "$cluster" || exit 1
  sleep 2
done

"$@" &
run=$!
trap 'kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
# a trapped signal ends the first wait before the run has ended
while kill -0 "$run" 2>/dev/null; do wait "$run" || code=$?; done
kill "$cluster"
exit "$code"
