#!/usr/bin/env bash
# Runs docker/check.py in the image, as its own non-root user: docker/check.sh [IMAGE]
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=docker/engine.sh
. ./engine.sh

image="${1:-localhost/knarr:latest}"
engine="$(find_engine)"
work="$(mktemp -d)"
container=""
finish() {
  if [ -n "$container" ]; then buildah rm "$container" >/dev/null; fi
  rm -rf "$work"
}
trap finish EXIT
chmod 0777 "$work"  # the user in the image is not the user out here
cp check.py "$work/"

command=(tini -s -- timeout -s KILL 900 python check.py)
# Lava passes every spike through shared memory; the engines' own 64 MB end large networks with a bus error.
case "$engine" in
  buildah)
    container="$(buildah from --pull=false --shm-size 1g "$image")"
    buildah run --isolation chroot --user knarr --volume "$work:/data" "$container" -- "${command[@]}" </dev/null ;;
  *) "$engine" run --rm --user knarr --shm-size 1g --volume "$work:/data" --entrypoint "" "$image" "${command[@]}" </dev/null ;;
esac
