#!/bin/sh
# Installs edgefarm's agent on a device with systemd and Python 3.10 or newer: a Raspberry Pi, a Jetson, an x86 gateway. Run as root.
# Without systemd it installs all but the units, and says what is then to be started.
#
#   install.sh [--wheelhouse DIR] [--version V] [--enable]     install, or finish an installation that was cut
#   install.sh --upgrade [--wheelhouse DIR] [--version V]      a new environment beside the old one, one atomic link, a restart
#   install.sh --back                                          to the environment before
#   install.sh --remove [--purge]                              --purge: also configuration, identity, results, deployed models, user
#
# --wheelhouse: take packages from this folder only, no internet (`make wheelhouse` makes one; it holds this script too, and is then the
# default). --extras NAMES: what the device can run (agent = onnxruntime and tflite). --python PATH: the interpreter to build upon.
# --enable: start now and at each boot. Everything may be repeated.
set -eu
umask 022 # the agent's user reads what root installs

HERE=$(cd "$(dirname "$0")" && pwd)
PREFIX=/opt/edgefarm
ETC=/etc/edgefarm
STATE=/var/lib/edgefarm
UNITS=/etc/systemd/system
TMPFILES=/etc/tmpfiles.d/edgefarm.conf
LOCK=/run/lock/edgefarm-measure.lock
COMMAND=/usr/local/bin/edge-agent
ACCOUNT=edgefarm

do=install wheelhouse='' version='' extras=agent python='' enable=no purge=no new='' systemd=yes

say() { printf '%s\n' "install.sh: $*" >&2; }
fail() { say "$1" && say "  $2" && exit "${3:-1}"; }
usage() { sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" >&2; }

while [ $# -gt 0 ]; do
    case $1 in
        --upgrade | --back | --remove) do=${1#--} ;;
        --enable) enable=yes ;;
        --purge) purge=yes ;;
        --wheelhouse | --version | --extras | --python)
            [ $# -ge 2 ] || fail "$1 needs a value" "see install.sh --help" 2
            case $1 in
                --wheelhouse) wheelhouse=$2 ;;
                --version) version=$2 ;;
                --extras) extras=$2 ;;
                --python) python=$2 ;;
            esac
            shift
            ;;
        --help | -h) usage && exit 0 ;;
        *) fail "unknown option $1" "see install.sh --help" 2 ;;
    esac
    shift
done

# What is half made is removed when anything fails; what ran before goes on running.
clean_up() {
    status=$?
    rm -rf "$PREFIX/.download"
    if [ $status -ne 0 ] && [ -n "$new" ] && [ ! -e "$new/.complete" ]; then rm -rf "$new"; fi
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

check_machine() {
    [ "$(id -u)" -eq 0 ] || fail "must run as root" "try: sudo $0 …" 2
    command -v systemctl >/dev/null 2>&1 || systemd=no
}

find_python() {
    for candidate in $python python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        path=$(command -v "$candidate") || continue
        path=$(readlink -f "$path")
        "$path" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        case $path in
            # The units can't look into home folders.
            /root/* | /home/*) [ -n "$python" ] && fail "$path: the service can't read home folders" "take a Python below /usr" 2; continue ;;
        esac
        "$path" -c 'import venv, ensurepip' 2>/dev/null || fail "$path has no venv module" "try: apt-get install python3-venv"
        python=$path && return
    done
    fail "no Python of at least 3.10" "install one, e.g. apt-get install python3 python3-venv, or name it: --python PATH"
}

# Where packages come from: an index, or one folder.
sources() {
    if [ -z "$wheelhouse" ] && ls "$HERE"/edgefarm-*.whl >/dev/null 2>&1; then wheelhouse=$HERE; fi
    [ -n "$wheelhouse" ] || return 0
    [ -d "$wheelhouse" ] || fail "--wheelhouse $wheelhouse: no such folder" "make one with: make wheelhouse" 2
    wheelhouse=$(cd "$wheelhouse" && pwd)
    ls "$wheelhouse"/edgefarm-*.whl >/dev/null 2>&1 || fail "$wheelhouse holds no edgefarm wheel" "make one with: make wheelhouse" 2
}

pip() {
    tool=$1
    shift
    set -- "$@" --quiet --disable-pip-version-check --no-input
    if [ -n "$wheelhouse" ]; then set -- "$@" --no-index --find-links "$wheelhouse"; fi
    if [ -n "$wheelhouse" ] && [ -f "$wheelhouse/constraints.txt" ]; then set -- "$@" --constraint "$wheelhouse/constraints.txt"; fi
    "$tool" -m pip "$@"
}

# The wheel decides the version, and with it the name of the environment, which can't be renamed later.
find_wheel() {
    rm -rf "$PREFIX/.download"
    "$python" -m venv "$PREFIX/.download/venv" || fail "no virtual environment below $PREFIX" "is the disk full or read-only? see above"
    pip "$PREFIX/.download/venv/bin/python" download --no-deps --dest "$PREFIX/.download" "edgefarm${version:+==$version}" ||
        fail "no edgefarm ${version:-wheel} to install" "see above; without internet: --wheelhouse DIR"
    wheel=$(ls "$PREFIX"/.download/edgefarm-*.whl)
    version=${wheel##*/edgefarm-}
    version=${version%%-*}
    wheel_digest=$(sha256sum "$wheel" | cut -d ' ' -f 1)
}

build() {
    target=$PREFIX/$version
    if [ -e "$target/.complete" ]; then
        [ "$(cat "$target/.complete")" = "$wheel_digest" ] ||
            fail "version $version is installed already, from another wheel" "give the new wheel a new version, or remove $target first"
        say "version $version is installed already"
        keep_units
        return
    fi
    rm -rf "$target"
    new=$target
    say "installing edgefarm[$extras] $version into $target"
    "$python" -m venv "$target"
    pip "$target/bin/python" install "edgefarm[$extras]==$version" ||
        fail "the packages of version $version could not be installed" "see above; is the disk full? is every wheel for $(uname -m) there?"
    "$target/bin/edge-agent" --version >/dev/null || fail "version $version does not start" "see above"
    keep_units
    sync # a power cut must not leave the mark without the files
    printf '%s\n' "$wheel_digest" >"$target/.complete"
}

# An environment has the units that belong to it: going back takes those as well.
keep_units() {
    rm -rf "$target/systemd"
    cp -r "$HERE/systemd" "$target/systemd"
}

make_account() {
    if ! getent passwd "$ACCOUNT" >/dev/null; then
        useradd --system --user-group --no-create-home --home-dir "$STATE" --shell /usr/sbin/nologin "$ACCOUNT" ||
            fail "no system user $ACCOUNT" "see above"
    fi
    install -d -m 0755 "$PREFIX" "$ETC"
    install -d -m 0710 -o "$ACCOUNT" -g "$ACCOUNT" "$STATE"
    [ ! -e "$ETC/agent.toml" ] || return 0
    install -m 0644 "$HERE/agent.toml" "$ETC/agent.toml"
    # Without systemd the agent starts runners itself.
    [ $systemd = yes ] || sed -i 's/^runner_socket/#&/' "$ETC/agent.toml"
}

install_units() {
    [ $systemd = yes ] || return 0
    install -d -m 0755 "${TMPFILES%/*}"
    for unit in edge-agent.service edge-runner.socket edge-runner@.service; do
        install -m 0644 "$PREFIX/$1/systemd/$unit" "$UNITS/.$unit.new"
        mv "$UNITS/.$unit.new" "$UNITS/$unit"
    done
    # The measure lock, made at each boot: on some systems only root may make files there, and /tmp of a service is its own.
    printf 'f %s 0666 root root -\n' "$LOCK" >"$TMPFILES"
    systemd-tmpfiles --create "$TMPFILES" || say "no $LOCK: agents and commands of this machine may measure at the same time"
    systemctl daemon-reload
}

# One rename: a device always has the old environment or the new one.
point() {
    ln -sfn "$1" "$PREFIX/.$2.new"
    mv -T "$PREFIX/.$2.new" "$PREFIX/$2"
}

switch() {
    before=$(readlink "$PREFIX/current" || true)
    if [ "$before" != "$1" ]; then
        [ -z "$before" ] || point "$before" previous
        point "$1" current
        say "version $1 is current${before:+, $before is kept: install.sh --back}"
    fi
    install_units "$1"
    ln -sfn "$PREFIX/current/bin/edge-agent" "$COMMAND"
}

# The current environment and the one before are kept.
remove_older() {
    for target in "$PREFIX"/*; do
        case ${target##*/} in
            current | previous | "$(readlink "$PREFIX/current")" | "$(readlink "$PREFIX/previous")") ;;
            *) if [ -e "$target/.complete" ]; then rm -rf "$target"; fi ;;
        esac
    done
}

# Whether the agent knows a controller: without one it would only fail.
has_controller() { [ -e "$STATE/identity" ] || grep -q '^ *controller *=' "$ETC/agent.toml"; }

restart() {
    [ $systemd = yes ] && systemctl --quiet is-enabled edge-agent.service 2>/dev/null && has_controller || return 0
    systemctl restart edge-runner.socket edge-agent.service
}

install_version() {
    find_python
    sources
    make_account
    find_wheel
    build
    older=$(readlink "$PREFIX/previous" || true)
    switch "$version"
    if [ $enable = yes ] && [ $systemd = yes ]; then
        systemctl --quiet enable edge-runner.socket edge-agent.service
    fi
    if ! restart; then
        if [ -n "$before" ] && [ "$before" != "$version" ]; then
            old=$before
            switch "$old"
            if [ -n "$older" ]; then point "$older" previous; else rm -f "$PREFIX/previous"; fi
            restart || say "$old does not start any more either"
            fail "edge-agent $version does not start; $old is current again" "journalctl -u edge-agent says why"
        fi
        fail "edge-agent $version does not start" "journalctl -u edge-agent says why"
    fi
    remove_older
    has_controller || say "next: edge-agent enroll --controller HOST:PORT --token TOKEN"
    if [ $systemd = no ]; then
        say "no systemd here, so nothing was enabled or restarted; to be started at each boot: su -s /bin/sh $ACCOUNT -c 'edge-agent run'"
    elif ! systemctl --quiet is-active edge-agent.service; then
        say "then: systemctl enable --now edge-runner.socket edge-agent"
    fi
}

go_back() {
    previous=$(readlink "$PREFIX/previous") || fail "there is no version before" "install.sh --upgrade --version V installs any"
    [ -e "$PREFIX/$previous/.complete" ] || fail "$PREFIX/$previous is gone" "install.sh --upgrade --version $previous"
    switch "$previous"
    restart || fail "edge-agent $previous does not start" "journalctl -u edge-agent says why"
}

remove() {
    if [ $systemd = yes ]; then
        systemctl --quiet disable --now edge-agent.service edge-runner.socket 2>/dev/null || true
        systemctl stop 'edge-runner@*' 2>/dev/null || true
    fi
    rm -f "$UNITS/edge-agent.service" "$UNITS/edge-runner.socket" "$UNITS/edge-runner@.service" "$COMMAND" "$TMPFILES"
    if [ $systemd = yes ]; then systemctl daemon-reload; fi
    rm -rf "$PREFIX"
    if [ $purge = yes ]; then
        rm -rf "$ETC" "$STATE"
        if getent passwd "$ACCOUNT" >/dev/null; then userdel "$ACCOUNT"; fi
    else
        say "kept: $ETC, $STATE and the user $ACCOUNT (--purge removes them)"
    fi
}

check_machine
case $do in
    install) install_version ;;
    upgrade)
        [ -e "$PREFIX/current" ] || fail "nothing is installed in $PREFIX" "install first: install.sh, without --upgrade"
        install_version
        ;;
    back) go_back ;;
    remove) remove ;;
esac
