#!/usr/bin/env bash
# Makes .venv with Python 3.10 and everything pinned in requirements.lock; does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")"

runs_310() { "$@" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 10))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in "${KNARR_PYTHON:-}" python3.10 python3 python; do
    if [ -n "$candidate" ] && runs_310 "$candidate"; then command -v "$candidate"; return; fi
  done
  if command -v pyenv >/dev/null; then
    # A pyenv shim answers only for the selected version, so ask for the installed ones by name.
    for candidate in $(pyenv versions --bare 2>/dev/null | grep -E '^3\.10(\.|$)' | sort -rV); do
      candidate="$(pyenv root)/versions/$candidate/bin/python3.10"
      if runs_310 "$candidate"; then echo "$candidate"; return; fi
    done
  fi
  if command -v uv >/dev/null; then
    candidate="$(uv python find 3.10 2>/dev/null || true)"
    if [ -n "$candidate" ] && runs_310 "$candidate"; then echo "$candidate"; return; fi
  fi
  return 1
}

wanted="$(cat requirements.lock pyproject.toml bootstrap.sh hw_sim/engines/csrc/* | sha256sum | cut -d' ' -f1) $(pwd -P)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/knarr-installed 2>/dev/null || true)" = "$wanted" ]; then exit 0; fi

python="$(find_python)" || {
  echo "knarr needs Python 3.10 (Lava-DL 0.6 runs on no other): install it with 'pyenv install 3.10' or 'uv python install 3.10', or set KNARR_PYTHON to one." >&2
  exit 2
}
echo "Installing knarr into .venv with $("$python" --version) (about 6 GB once, a few minutes) ..."
if ! { [ -x .venv/bin/python ] && runs_310 .venv/bin/python; }; then
  rm -rf .venv
  "$python" -m venv .venv
fi
rm -f .venv/knarr-installed
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps)
"${pip[@]}" --require-hashes -r requirements.lock
"${pip[@]}" --no-build-isolation -e .
echo "$wanted" > .venv/knarr-installed
