# shellcheck shell=bash
# Sourced by build.sh and check.sh.

# The first of docker, podman and buildah that works here, or the one that KNARR_BUILDER names.
find_engine() {
  local candidate
  for candidate in ${KNARR_BUILDER:-docker podman buildah}; do
    if command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then echo "$candidate"; return; fi
  done
  echo "found no working ${KNARR_BUILDER:-docker, podman or buildah}; without a daemon: apt-get install --no-install-recommends buildah crun" >&2
  exit 2
}
