#!/usr/bin/env bash
# What the images have beyond NVIDIA's: called by the Dockerfile and by megatron_qwen3.def, as root.
#
#   bash containers/install.sh system packages project
#
# system    programs of the distribution
# packages  a virtual environment on top of the image's Python, with what setup.py asks for, at the
#           versions of constraints.txt; what kept.txt names stays as it is in the image
# project   this project in it; fails where anything of the image was changed
#
# MQ3_VENV (/opt/mq3) is where the environment goes, MQ3_WORKSPACE (/workspace) what everybody may write
# to. No step needs a GPU.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MQ3_VENV:-/opt/mq3} workspace=${MQ3_WORKSPACE:-/workspace}
readonly EXTRAS=train,data,languages,posttrain,eval,wandb

# The image's own constraints hold all that it was built with, also what it does not have any more;
# those of packages() take their place. pip keeps no copies in an image.
unset PIP_CONSTRAINT
export PIP_NO_CACHE_DIR=${PIP_NO_CACHE_DIR:-1} PIP_DISABLE_PIP_VERSION_CHECK=1

system() {
  local lists
  lists=$(mktemp -d) && chmod 755 "$lists"
  apt-get update -qq --option Dir::State::lists="$lists"
  # The sandbox in which answers that are programs run.
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    --option Dir::State::lists="$lists" bubblewrap
  rm -rf "$lists"
}

# A virtual environment can hold another release of what the image has; nothing of the image is lost.
packages() {
  python3 -m venv --system-site-packages --without-pip "$venv" # the image's pip works in it
  "$venv/bin/python" "$checkout/containers/pins.py" write "$checkout/containers/constraints.txt" \
    >"$venv/constraints.txt"
  local build
  build=$(mktemp -d)
  cp "$checkout/setup.py" "$checkout/pyproject.toml" "$build"
  "$venv/bin/python" -m pip install --constraint "$venv/constraints.txt" "${build}[$EXTRAS]"
  rm -rf "$build"
}

project() {
  local build
  build=$(mktemp -d) # pip builds in the folder that it is given
  cp -r "$checkout/." "$build"
  "$venv/bin/python" -m pip install --no-deps --force-reinstall "$build"
  rm -rf "$build"
  "$venv/bin/python" "$checkout/containers/pins.py" check "$venv/constraints.txt"
  "$venv/bin/mq3" --help >/dev/null
  mkdir -p "$workspace"
  chmod 1777 "$workspace"
}

(($#)) || { echo "error: what is to be installed? system, packages, project" >&2 && exit 2; }
for step in "$@"; do
  case $step in
    system | packages | project) "$step" ;;
    *) echo "error: $step is not one of system, packages, project" >&2 && exit 2 ;;
  esac
done
