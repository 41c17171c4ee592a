#!/usr/bin/env bash
# A scheduler, workers and a run that survives its job, all in one job of Slurm.
#
#   sbatch examples/slurm.sh examples/ising.py:ising --sweep inputs.csv --store runs/ising --seed 7
#
# What follows the script is what `atomizer-dask map` takes. The run survives in its --store, which
# has to be on a file system that the nodes share: the same command goes on where an earlier job
# ended, be it out of time, cancelled, or with a node that failed. What is in the store is not
# computed again. A job that runs out of time queues itself again, until all is done.
#
# Lines marked with EDIT depend on your cluster.

#SBATCH --job-name=atomizer
#SBATCH --ntasks=8                  # EDIT: workers, on as many nodes as that takes
#SBATCH --cpus-per-task=1           # EDIT: threads of each; more only if the atom frees the GIL
#SBATCH --mem-per-cpu=2G            # EDIT
#SBATCH --time=04:00:00             # EDIT
##SBATCH --account=my_project       # EDIT: remove one # to use a line
##SBATCH --partition=standard       # EDIT
#SBATCH --signal=B:USR1@120         # has Slurm tell this script that two minutes are left
#SBATCH --requeue                   # lets it queue again: by itself, and where a node fails
#SBATCH --open-mode=append          # so that its log is one of all attempts
#SBATCH --output=%x-%j.log

set -euo pipefail

# EDIT: what brings the commands `dask` and `atomizer-dask`, the same on all nodes, as in
# source /shared/miniforge/bin/activate atomizer

INTERFACE=${INTERFACE:-}            # EDIT: the network between the nodes, as in ib0
LOCAL=${LOCAL:-${TMPDIR:-/tmp}}     # EDIT: a folder of each node itself, for what workers spill
RESTARTS=${RESTARTS:-50}            # how often it queues itself again, at most

SUSPENDED=4                         # with this `atomizer-dask map` exits if not all is done
threads=${SLURM_CPUS_PER_TASK:-1}
memory=$((${SLURM_MEM_PER_CPU:?ask for memory with --mem-per-cpu} * threads))MiB
scheduler_file=$PWD/scheduler-$SLURM_JOB_ID.json
scheduler='' run='' signalled='' out_of_time=''

# Has the run write what is done, and exit within seconds.
suspend() {
    signalled=yes
    if [[ $run ]]; then kill -TERM "$run" 2>/dev/null || true; fi
}

# A signal ends a `wait` of bash, but not the process that it waits for.
wait_for() {
    local code=0
    signalled=yes
    while [[ $signalled ]]; do
        signalled='' code=0
        wait "$1" || code=$?
    done
    return "$code"
}

# Workers end by themselves as soon as their scheduler does; those that have not found it yet would
# wait for it. They are the first step of the job.
end_cluster() {
    if [[ $scheduler ]]; then
        kill -TERM "$scheduler" 2>/dev/null || true
        scancel --quiet --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null || true
    fi
    scheduler=''
    wait || true
    rm -f "$scheduler_file"
}

trap end_cluster EXIT
trap 'out_of_time=yes; suspend' USR1
trap suspend TERM                   # from scancel, or for a job that matters more

# Dask trusts whoever reaches its ports; where that is not for you, configure TLS for Dask.
rm -f "$scheduler_file"             # of an attempt whose node failed
dask scheduler --scheduler-file "$scheduler_file" --port 0 --no-dashboard \
    ${INTERFACE:+--interface "$INTERFACE"} &
scheduler=$!

# One worker may die, and the others go on; when all have ended, there is no use in waiting.
# Without --cpus-per-task each would get one CPU.
{
    srun --ntasks="$SLURM_NTASKS" --cpus-per-task="$threads" --kill-on-bad-exit=0 --wait=0 \
        dask worker --scheduler-file "$scheduler_file" --nthreads "$threads" \
        --memory-limit "$memory" --local-directory "$LOCAL" --death-timeout 120 \
        --no-dashboard ${INTERFACE:+--interface "$INTERFACE"} || true
    echo "the workers have ended" >&2
    kill -TERM $$
} &

atomizer-dask map "$@" --scheduler-file "$scheduler_file" &
run=$!

code=0
wait_for "$run" || code=$?
run=''
end_cluster                         # first, for Slurm ends a job that it queues again
if [[ $code == "$SUSPENDED" && $out_of_time ]]; then
    if ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "not done after $RESTARTS restarts; to go on, submit it again" >&2
    fi
fi
exit "$code"
