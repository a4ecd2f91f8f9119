#!/usr/bin/env bash
# Builds docker/Dockerfile for real without a container engine or an image registry, and checks the
# result: buildah on a base that debootstrap makes. Needs root, Debian's buildah and debootstrap, about
# 20 GB in WORK. It proves everything but the FROM line of a published base.
#
#   sudo docker/build-local.sh WORK     (MIRROR=... SUITE=... to choose Debian's; TESTS=... to run in it)
set -euo pipefail

work=$(realpath -m "${1:?name a work folder, about 20 GB}")
root=$(cd "$(dirname "$0")/.." && pwd)
suite=${SUITE:-bookworm}
tests=${TESTS:-tests/test_architecture.py tests/test_page.py}
base=localhost/base:$suite
image=localhost/hybrid-person-search:local

for tool in buildah debootstrap; do
    command -v "$tool" > /dev/null || { echo "error: $tool is not installed (apt-get install $tool)" >&2; exit 2; }
done
mkdir -p "$work"

build() { buildah --root "$work/images" --runroot "$work/running" --storage-driver overlay "$@"; }
# The host's certificates, for machines behind an authority of their own; they stay out of the image.
mounts=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)

if [ ! -e "$work/base.done" ]; then
    echo "== base: Debian $suite with Python"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
        "$suite" "$work/base" ${MIRROR:+"$MIRROR"} > "$work/debootstrap.log"
    container=$(build from scratch)
    build add --quiet "$container" "$work/base" / > /dev/null
    build commit --quiet "$container" "$base" > /dev/null
    build rm "$container" > /dev/null
    rm -rf "$work/base"
    touch "$work/base.done"
fi

echo "== image"
time build bud --layers --isolation chroot --pull-never "${mounts[@]}" --build-arg BASE="$base" \
    -f "$root/docker/Dockerfile" -t "$image" "$root"

echo "== checks"
container=$(build from --pull-never "$image")
trap 'build rm "$container" > /dev/null' EXIT
inside() { build run --isolation chroot --env HOME=/tmp "$container" -- "$@"; }

[ "$(inside id -u)" = 10001 ] || { echo "error: the image does not run as uid 10001" >&2; exit 1; }
inside python -c 'import torch, torchvision, deepspeed, ray, cv2, simplejpeg; print("torch", torch.__version__)'
inside python -m sharding --help > /dev/null
inside rclone version > /dev/null
# shellcheck disable=SC2086  # several test files
inside python -m pytest -p no:cacheprovider $tests

files=$(build mount "$container")
for left in root/.cache var/lib/apt/lists etc/pip.conf etc/uv/uv.toml app/.git app/.venv; do
    if [ -n "$(ls -A "$files/$left" 2> /dev/null)" ]; then
        echo "error: /$left was left in the image" >&2
        exit 1
    fi
done
if find "$files/app" "$files/opt/venv" -xdev -uid 10001 -not -path "$files/app/runs" | grep -q .; then
    echo "error: the user owns files of the program" >&2
    exit 1
fi
echo "good: $(du -sh "$files" | cut -f1) unpacked, user 10001, no cache, no keys"
build umount "$container" > /dev/null
