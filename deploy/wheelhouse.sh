#!/bin/sh
# Makes a folder from which deploy/install.sh installs without internet: wheels, the script, units, an example configuration.
#
#   wheelhouse.sh DIR [MACHINE PYTHON]     e.g. wheelhouse.sh wheelhouse aarch64 3.11; default: this machine, this Python
#
# Needs the internet itself. PYTHON (environment): the interpreter to work with; EXTRAS: what the device can run (default: agent).
set -eu

ROOT=$(cd "$(dirname "$0")/.." && pwd)
target=${1:?usage: wheelhouse.sh DIR [MACHINE PYTHON_VERSION]}
python=${PYTHON:-python3}
own="$(uname -m) $("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
machine=${2:-${own% *}} version=${3:-${own#* }}

mkdir -p "$target"
rm -f "$target"/*.whl "$target/constraints.txt"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$target" "$ROOT"
wheel=$(ls "$target"/edgefarm-*.whl)
set -- --dest "$target" --only-binary :all: "${wheel}[${EXTRAS:-agent}]"
if [ "$machine $version" = "$own" ]; then
    # The versions that this very checkout was tested with.
    cp "$ROOT/constraints.txt" "$target/"
    set -- "$@" --constraint "$ROOT/constraints.txt"
else
    for platform in manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do set -- "$@" --platform "${platform}_$machine"; done
    set -- "$@" --implementation cp --python-version "$version"
    # pip asks this interpreter, not the target, which markers hold.
    if [ "$version" = 3.10 ]; then set -- "$@" tomli; fi
fi
"$python" -m pip download --quiet --disable-pip-version-check "$@"
cp "$ROOT/deploy/install.sh" "$ROOT/deploy/agent.toml" "$target/"
rm -rf "$target/systemd"
cp -r "$ROOT/deploy/systemd" "$target/systemd"
printf '%s\n' "$target: for Python $version on $machine; copy it to the device and run: sudo sh $(basename "$target")/install.sh --enable" >&2
