#!/usr/bin/env bash
# Stands in for Apptainer, or for an srun with the Pyxis plugin, by the name that it is called by.
#
# It runs a command where it sees what the image has and what is mounted, and nothing else: a
# namespace that bubblewrap makes. An image is a file of lines: the PATH inside, then the folders that
# are in it. /usr and /etc are the machine's. What it does not know of the real programs' options it refuses.
set -euo pipefail

# inside IMAGE FOLDER MOUNTS COMMAND…
run_inside() {
  local image=$1 folder=$2 mounts=$3 path row rows words=()
  shift 3
  {
    read -r path
    while read -r row; do words+=(--ro-bind "$row" "$row"); done
  } <"$image"
  IFS=, read -ra rows <<<"$mounts"
  for row in "${rows[@]}"; do words+=(--bind "${row%%:*}" "${row#*:}"); done
  echo "inside $image" >&2
  exec bwrap --die-with-parent --ro-bind /usr /usr --ro-bind /etc /etc --symlink usr/bin /bin \
    --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp \
    "${words[@]}" --chdir "$folder" --setenv PATH "$path" --setenv CONTAINER "$image" "$@"
}

refuse() {
  echo "${0##*/}: $1" >&2
  exit 255
}

apptainer() {
  [[ "$1 $2 $3 $5" == "exec --nv --pwd --bind" ]] || refuse "unknown options: $*"
  run_inside "$7" "$4" "$6" "${@:8}"
}

srun() {
  local image='' folder=/ mounts='' others=()
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --help) echo "  --container-image=  --no-container-entrypoint" && exit ;;
      --container-image=*) image=${1#*=} ;;
      --container-workdir=*) folder=${1#*=} ;;
      --container-mounts=*) mounts=${1#*=} ;;
      --no-container-entrypoint) ;;
      --container-*) refuse "unknown option $1" ;;
      *) others+=("$1") ;;
    esac
    shift
  done
  local command=("$@")
  [ -z "$image" ] || command=(bash "$SELF" inside "$image" "$folder" "$mounts" "$@")
  # The machine's own srun, where there is a SLURM.
  [ -z "${REAL_SRUN:-}" ] || exec "$REAL_SRUN" "${others[@]}" "${command[@]}"
  "${command[@]}"
}

SELF=$(realpath "$0")
case ${0##*/} in
  apptainer | srun) "${0##*/}" "$@" ;;
  *) [[ $1 == inside ]] && run_inside "${@:2}" ;;
esac
