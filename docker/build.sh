#!/usr/bin/env bash
# Builds the image with docker, podman or buildah, whichever works here. KNARR_BUILDER names one of them.
#   docker/build.sh [--base IMAGE] [--tag IMAGE] [--check]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=docker/engine.sh
. docker/engine.sh

tag=localhost/knarr:latest
base=""
check=""
while [ $# -gt 0 ]; do
  case "$1" in
    --base) base="${2:?--base needs an image}"; shift 2 ;;
    --tag) tag="${2:?--tag needs a name}"; shift 2 ;;
    --check) check=1; shift ;;
    *) sed -n '2,3s/^# *//p' docker/build.sh >&2; exit 2 ;;
  esac
done

engine="$(find_engine)"
made_here=localhost/knarr-base:latest  # of docker/make-base.sh
if [ -z "$base" ] && "$engine" inspect --type image "$made_here" >/dev/null 2>&1; then base="$made_here"; fi

# pip's settings of this machine (indexes, proxy, certificates) go in as secrets: needed while building, absent from the image.
secrets="$(mktemp -d)"
trap 'rm -rf "$secrets"' EXIT
arguments=()
if pip="$(python3 -m pip config list 2>/dev/null)"; then
  SETTINGS="$pip" python3 - "$secrets" <<'PYTHON'
import ast, os, pathlib, sys

kept = {"index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout", "default-timeout", "retries"}
settings = {}
for line in sorted(os.environ["SETTINGS"].splitlines(), key=lambda line: line.startswith(":env:")):  # pip's order: variables win
    name, _, value = line.partition("=")
    settings[name.rpartition(".")[2]] = ast.literal_eval(value)
certificates = [settings.get("cert")] + [os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")]
secrets = pathlib.Path(sys.argv[1])
lines = ["[global]"]
for name in sorted(kept & settings.keys()):
    # Folders of this machine are not there in the build.
    words = [word for word in settings[name].split() if not word.startswith(("/", "file:"))]
    if words:
        lines.append(f"{name} = {' '.join(words)}")
for path in certificates:
    if path and os.path.isfile(path):
        (secrets / "ca.pem").write_bytes(pathlib.Path(path).read_bytes())
        lines.append("cert = /run/secrets/ca.pem")
        break
(secrets / "pip.conf").write_text("\n".join(lines) + "\n")
PYTHON
fi
for file in "$secrets"/*; do
  if [ -f "$file" ]; then arguments+=(--secret "id=$(basename "$file"),src=$file"); fi
done
if [ -n "$base" ]; then arguments+=(--build-arg "BASE=$base"); fi

case "$engine" in
  buildah) build=(buildah bud --isolation chroot --layers) ;;
  podman) build=(podman build --layers) ;;
  docker) build=(docker build); export DOCKER_BUILDKIT=1 ;;
esac
echo "build: $tag with $engine on ${base:-the default base} (downloads about 3 GB the first time) ..."
"${build[@]}" "${arguments[@]}" -t "$tag" -f docker/Dockerfile . \
  || { echo "build: failed; where no image registry can be reached, docker/make-base.sh makes the base first" >&2; exit 1; }
echo "build: made $tag"
if [ -n "$check" ]; then docker/check.sh "$tag"; fi
