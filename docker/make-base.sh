#!/usr/bin/env bash
# Makes the base image where no image registry can be reached: Debian bookworm from its packages, and under /usr/local a
# copy of the newest relocatable Python of this machine (pyenv or uv; KNARR_PYTHON names another). Needs root, debootstrap and buildah.
set -euo pipefail
cd "$(dirname "$0")"

image="${1:-localhost/knarr-base:latest}"
suite=bookworm
# What the standard library and Lava need besides minbase; tini is put there so that the build needs no apt.
packages=(ca-certificates tini libbz2-1.0 libexpat1 libffi8 libgdbm6 liblzma5 libncursesw6 libreadline8
  libsqlite3-0 libssl3 libuuid1 zlib1g)

fail() { echo "make-base: $*" >&2; exit 2; }

[ "$(id -u)" = 0 ] || fail "debootstrap needs root; run it as root or in a user namespace (unshare -r)"
for tool in debootstrap buildah; do
  command -v "$tool" >/dev/null || fail "$tool is not installed; apt-get install --no-install-recommends debootstrap buildah crun"
done

# The version of an interpreter that can be copied with its library and pip; nothing for one that is too old or broken.
version_of() { "$1" -c 'import sys, ensurepip; sys.version_info >= (3, 11) and print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

candidates() {
  local version
  if [ -n "${KNARR_PYTHON:-}" ]; then command -v "$KNARR_PYTHON" || true; return; fi
  for version in 3.14 3.13 3.12 3.11; do
    command -v "python$version" || true
    if command -v pyenv >/dev/null; then
      pyenv versions --bare 2>/dev/null | grep -E "^${version//./\\.}(\.|$)" | sort -rV | sed "s|.*|$(pyenv root)/versions/&/bin/python$version|" || true
    fi
    if command -v uv >/dev/null; then uv python find --managed-python "$version" 2>/dev/null || true; fi
  done
}

prefix=""
while read -r candidate; do
  version="$(version_of "$candidate")"
  [ -n "$version" ] || continue
  prefix="$("$candidate" -c 'import sys; print(sys.base_prefix)')"
  # A distribution's own Python under /usr is spread over the system and cannot be copied.
  if [ "$prefix" != /usr ]; then break; fi
  prefix=""
done < <(candidates)
[ -n "$prefix" ] || fail "found no relocatable Python from 3.11 on; 'pyenv install 3.13' or 'uv python install 3.13', or set KNARR_PYTHON to one"
python="python$version"

rootfs="$(mktemp -d "${TMPDIR:-/var/tmp}/knarr-base.XXXXXX")"
container=""
finish() {
  if [ -n "$container" ]; then buildah rm "$container" >/dev/null; fi
  rm -rf --one-file-system "$rootfs"
}
trap finish EXIT
trap 'exit 130' INT TERM

# The Debian sources of this machine, where it has them: the mirror, updates and security fixes it would itself use.
# shellcheck disable=SC2016  # apt-get fills these in, not the shell
sources="$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
  'Created-By: Packages' 'Origin: Debian' 'Component: main' 2>/dev/null | grep -E " $suite(-updates|-security)? " | sort -u || true)"
mirror="$(awk -v suite="$suite" '$3 == suite { print $2; exit }' <<<"$sources")"

echo "make-base: Debian $suite ..."
include="$(IFS=,; echo "${packages[*]}")"
DEBIAN_FRONTEND=noninteractive debootstrap --variant=minbase --include="$include" "$suite" "$rootfs" ${mirror:+"$mirror"} >"$rootfs.log" 2>&1 \
  || { tail -n 20 "$rootfs.log" >&2; fail "debootstrap failed; the whole log is $rootfs.log"; }
if [ -n "$sources" ]; then
  echo "$sources" >"$rootfs/etc/apt/sources.list"
  { chroot "$rootfs" apt-get update && DEBIAN_FRONTEND=noninteractive chroot "$rootfs" apt-get upgrade -y --no-install-recommends; } >>"$rootfs.log" 2>&1 \
    || { tail -n 20 "$rootfs.log" >&2; fail "apt-get upgrade failed; the whole log is $rootfs.log"; }
fi
rm -f "$rootfs.log"
rm -rf "$rootfs"/var/lib/apt/lists/* "$rootfs"/var/cache/apt/* "$rootfs"/var/log/* "$rootfs"/usr/share/{doc,man,info,locale}/* "$rootfs"/tmp/*
rm -f "$rootfs"/etc/{resolv.conf,hostname}

echo "make-base: Python from $prefix ..."
mkdir -p "$rootfs"/usr/local/{bin,lib}
cp -a "$prefix/bin/$python" "$rootfs/usr/local/bin/"
find "$prefix/lib" -maxdepth 1 -name 'libpython3*.so*' -exec cp -a {} "$rootfs/usr/local/lib/" \;
# Site packages stay behind: they are the building machine's, and pip comes fresh from ensurepip.
tar -C "$prefix/lib" --exclude='__pycache__' --exclude="$python/site-packages/*" --exclude='*/test' --exclude='*/tests' \
  --exclude="$python/config-*" --exclude="$python/idlelib" --exclude="$python/tkinter" \
  --exclude="$python/turtledemo" --exclude='_tkinter.*' --exclude='nis.*' -cf - "$python" | tar -C "$rootfs/usr/local/lib" --no-same-owner -xf -
# What sysconfig tells about the build must name the new place, not the old.
find "$rootfs/usr/local/lib/$python" -maxdepth 1 -name '_sysconfigdata*.py' -exec sed -i "s|$prefix|/usr/local|g" {} +
chown -R root:root "$rootfs/usr/local"
ln -sf "$python" "$rootfs/usr/local/bin/python3"
ln -sf "$python" "$rootfs/usr/local/bin/python"
chroot "$rootfs" ldconfig

missing="$(chroot "$rootfs" sh -c "ldd /usr/local/bin/$python /usr/local/lib/$python/lib-dynload/*.so" | grep 'not found' | sort -u || true)"
[ -z "$missing" ] || fail "shared libraries missing in the base: $missing"
in_base() { env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$rootfs" "$@"; }
in_base python3 -m compileall -q "/usr/local/lib/$python"
in_base env PIP_ROOT_USER_ACTION=ignore python3 -m ensurepip --upgrade >/dev/null || fail "ensurepip failed in the base"
in_base python3 -c '
import bz2, ctypes, hashlib, lzma, multiprocessing.shared_memory, readline, sqlite3, ssl, sys, uuid, zlib
if sys.prefix != "/usr/local": sys.exit(f"sys.prefix is {sys.prefix}, not /usr/local")
' || fail "the copied Python does not run in the base; set KNARR_PYTHON to another"

echo "make-base: image $image ..."
container="$(buildah from scratch)"
buildah add -q "$container" "$rootfs" / >/dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 --cmd python3 "$container"
buildah commit -q "$container" "$image" >/dev/null
echo "make-base: made $image ($(du -shx "$rootfs" | cut -f1)); build with: docker/build.sh --base $image"
