#!/usr/bin/env bash
# Makes .venv with the newest Python that is found, from 3.11 on, and everything pinned in requirements.lock; does nothing when
# it is up to date. KNARR_PYTHON names another interpreter, KNARR_LOCK another lock file, KNARR_VENV another folder.
set -euo pipefail
cd "$(dirname "$0")"

VERSIONS=(3.14 3.13 3.12 3.11)
lock="${KNARR_LOCK:-requirements.lock}"
venv="${KNARR_VENV:-.venv}"

serves() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local version candidate
  if [ -n "${KNARR_PYTHON:-}" ]; then
    serves "$KNARR_PYTHON" && command -v "$KNARR_PYTHON"
    return
  fi
  for version in "${VERSIONS[@]}"; do
    # A pyenv shim answers only for the selected version, so ask for the installed ones by name.
    for candidate in "python$version" \
      $(pyenv versions --bare 2>/dev/null | grep -E "^${version//./\\.}(\.|$)" | sort -rV | sed "s|.*|$(pyenv root 2>/dev/null)/versions/&/bin/python$version|") \
      "$(uv python find --no-project "$version" 2>/dev/null || true)"; do
      if [ -n "$candidate" ] && serves "$candidate"; then command -v "$candidate"; return; fi
    done
  done
  for candidate in python3 python; do
    if serves "$candidate"; then command -v "$candidate"; return; fi
  done
  return 1
}

# `bootstrap.sh --find 3.11` prints the path of that Python and installs nothing.
if [ "${1:-}" = --find ]; then
  VERSIONS=("$2")
  python="$(unset KNARR_PYTHON; find_python)" && [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$2" ] || {
    echo "Python $2 is not found: install it with 'pyenv install $2' or 'uv python install $2'." >&2
    exit 2
  }
  echo "$python"
  exit 0
fi

wanted="$(cat "$lock" pyproject.toml bootstrap.sh hw_sim/engines/csrc/* | sha256sum | cut -d' ' -f1) $(pwd -P) ${KNARR_PYTHON:-}"
if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/knarr-installed" 2>/dev/null || true)" = "$wanted" ]; then exit 0; fi

python="$(find_python)" || {
  echo "knarr needs Python 3.11 or newer with its venv module (Debian: python3-venv)${KNARR_PYTHON:+, and KNARR_PYTHON=$KNARR_PYTHON is none}: install one with 'pyenv install 3.13' or 'uv python install 3.13', or set KNARR_PYTHON to one." >&2
  exit 2
}
echo "Installing knarr into $venv with $("$python" --version) and $lock (about 6 GB once, a few minutes) ..."
if ! { [ -x "$venv/bin/python" ] && [ "$("$venv/bin/python" --version 2>&1)" = "$("$python" --version)" ]; }; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
# A kill may have come between a new environment and its pip.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
rm -f "$venv/knarr-installed"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps)
"${pip[@]}" --require-hashes -r "$lock"
"${pip[@]}" --no-build-isolation -e .
"$venv/bin/knarr" lava install
echo "$wanted" > "$venv/knarr-installed"
