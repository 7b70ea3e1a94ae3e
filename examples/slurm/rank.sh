#!/usr/bin/env bash
# One rank: SLURM's numbers under the names that torch reads, then the command. Called by srun.
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
exec "$@"
