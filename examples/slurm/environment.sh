# shellcheck shell=bash disable=SC2034  # what is left unused here is for who sources it
# Sourced by every job: enters the checkout and says how a command runs in the venv or container.
#
# All of it can be left out where the job is submitted from a checkout with a .venv:
#
#   QWEN3_CHECKOUT    this repository, where all nodes see it; default: the folder sbatch is called in
#   QWEN3_SETUP       a file that is sourced first, for what a site needs: module load, NCCL_IB_HCA=
#   QWEN3_VENV        virtual environment; default: .venv of the checkout, else python as it is found
#   QWEN3_CONTAINER   image in which everything runs instead, with the checkout mounted in its place: a
#                     .sif or .sqsh file, a folder, docker://… or registry#image
#   QWEN3_RUNTIME     what runs the image: apptainer or pyxis; default: apptainer for a .sif file, a
#                     folder or docker://…, else pyxis
#   QWEN3_MOUNTS      folders that a container sees besides the checkout: /data:/data,/scratch:/scratch
#
# It leaves two arrays: `srun "${STEP[@]}" "${INSIDE[@]}" python …` runs python in the environment.

# What was asked for cannot be: exit status 2, and no restart.
refuse() {
  echo "error: $1" >&2
  exit 2
}

cd "${QWEN3_CHECKOUT:=$SLURM_SUBMIT_DIR}" || exit 2

if [ -n "${QWEN3_SETUP:-}" ]; then
  [ -f "$QWEN3_SETUP" ] || refuse "QWEN3_SETUP = $QWEN3_SETUP is no file"
  # shellcheck disable=SC1090  # the site's own
  source "$QWEN3_SETUP"
fi

# srun gives a task one core unless told again what the job asked for (SLURM 22.05 and newer).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# No MPI takes part: ranks meet over TCP. Without this a site's default may ask for a missing pmix.
STEP=(--mpi=none)
INSIDE=()

use_venv() {
  local venv=${QWEN3_VENV:-}
  [ -n "$venv" ] || { [ -x .venv/bin/python ] && venv=$PWD/.venv; } || return 0
  [ -x "$venv/bin/python" ] || refuse "QWEN3_VENV = $venv has no bin/python"
  export PATH="$venv/bin:$PATH"
}

use_pyxis() {
  local help
  help=$(srun --help)
  [[ $help == *--container-image* ]] ||
    refuse "QWEN3_CONTAINER = $QWEN3_CONTAINER needs the Pyxis plugin, which this SLURM does not have; \
with QWEN3_RUNTIME=apptainer Apptainer runs it"
  STEP+=(--container-image="$QWEN3_CONTAINER" --container-workdir="$PWD" --container-mounts="$1")
  # What the image starts with, where a site has it called, is not for ranks.
  [[ $help != *--no-container-entrypoint* ]] || STEP+=(--no-container-entrypoint)
}

use_apptainer() {
  local program
  program=$(command -v apptainer || command -v singularity) ||
    refuse "QWEN3_CONTAINER = $QWEN3_CONTAINER needs apptainer, which is not on PATH; see QWEN3_SETUP"
  # --nv: NVIDIA's driver of the host. Variables of the job, RANK among them, are passed on.
  INSIDE=("$program" exec --nv --pwd "$PWD" --bind "$1" "$QWEN3_CONTAINER")
}

# A file or a folder, by its name; all else is found by the runtime.
is_path() {
  [[ $1 == /* || $1 == .* ]] ||
    [[ ($1 == *.sif || $1 == *.sqsh) && $1 != *://* && $1 != *'#'* ]]
}

use_container() {
  local runtime=pyxis
  if is_path "$QWEN3_CONTAINER"; then
    # Pyxis takes a name without a folder for one of a registry.
    [[ $QWEN3_CONTAINER == /* ]] || QWEN3_CONTAINER=$PWD/$QWEN3_CONTAINER
  fi
  if [[ $QWEN3_CONTAINER == *.sif || $QWEN3_CONTAINER == *://* || -d $QWEN3_CONTAINER ]]; then
    runtime=apptainer
  fi
  [[ $PWD != *[:,]* ]] || refuse "a checkout with : or , in its path, $PWD, cannot be mounted"
  case ${QWEN3_RUNTIME:=$runtime} in
    pyxis | apptainer) "use_$QWEN3_RUNTIME" "$PWD:$PWD${QWEN3_MOUNTS:+,$QWEN3_MOUNTS}" ;;
    *) refuse "QWEN3_RUNTIME = $QWEN3_RUNTIME is not one of apptainer, pyxis" ;;
  esac
  if is_path "$QWEN3_CONTAINER" && [ ! -e "$QWEN3_CONTAINER" ]; then
    refuse "QWEN3_CONTAINER = $QWEN3_CONTAINER is not there"
  fi
}

if [ -n "${QWEN3_CONTAINER:-}" ]; then use_container; else use_venv; fi
