#!/usr/bin/env bash
# Start a Ray cluster on the nodes of a SLURM job, then run the given command:
#   sbatch --nodes=4 --gpus-per-node=8 conf/cluster/slurm.sh \
#     orchestrator run +exp=wfpp_laion source.uri='/lustre/laion400m/{00000..41455}.tar' store=/lustre/store out=/lustre/runs/wfpp
# After a time limit or a lost node, submit the same job again to resume. SLURM sends SIGTERM two minutes before the
# limit, and the run writes a checkpoint. All nodes must share the home folder, because Ray keeps its token there.
#SBATCH --job-name=orchestrator
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

port=${RAY_PORT:-6379}
# not `| head -n 1`: it can end scontrol by SIGPIPE, and pipefail then ends the script
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
gpus=${SLURM_GPUS_ON_NODE:-0}
export RAY_ADDRESS="$head:$port" RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
if [ "$RAY_AUTH_MODE" = token ]; then
  ray get-auth-token --generate >/dev/null
fi

# one step runs the cluster: the first node is the head, and the others wait for it; a failed node ends the step
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 bash -c "
  if [ \"\$SLURM_PROCID\" = 0 ]; then
    unset RAY_ADDRESS
    exec ray start --head --port=$port --num-cpus=$cpus --num-gpus=$gpus --disable-usage-stats --block
  fi
  for _ in \$(seq 60); do ray health-check --address=$head:$port 2>/dev/null && break; sleep 2; done
  exec ray start --address=$head:$port --num-cpus=$cpus --num-gpus=$gpus --disable-usage-stats --block
" &
cluster=$!

nodes_up() { ray list nodes --filter state=ALIVE --limit 10000 --format json 2>/dev/null | grep -o '"node_id"' | wc -l; }
deadline=$((SECONDS + 600))
until [ "$(nodes_up)" -ge "$SLURM_NNODES" ]; do
  if ! kill -0 "$cluster" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
    echo "the Ray cluster did not start on $SLURM_NNODES nodes" >&2
    exit 1
  fi
  sleep 2
done

"$@" &
run=$!
trap 'signalled=yes; kill -TERM "$run" 2>/dev/null || true' TERM
signalled=yes
# a signal interrupts `wait` before the run has ended: wait again
while [ "$signalled" = yes ]; do
  signalled=no code=0
  wait "$run" || code=$?
done
kill "$cluster" 2>/dev/null || true
exit "$code"
