#!/bin/sh
# Install the missing Debian packages that the build and the lab need. With the argument "tests", also install
# those of the tests and benchmarks. Usage: tools/host.sh PYTHON [tests]
set -eu

python=$1
tests=${2:-}
missing=""

need() {
    missing="$missing $*"
}

has() {
    # /usr/sbin and /sbin are not on every user's PATH.
    PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1
}

compiles() {
    "$python" - <<'PYTHON' 2>/dev/null
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHON
}

has "$python" || need python3
"$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
compiles || need python3-dev
has gcc || need gcc
echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1 || need libc6-dev
has musl-gcc || need musl-tools
has git || need git
has ip || need iproute2
has ping || need iputils-ping
has mmdebstrap || need mmdebstrap
has unshare || need util-linux
has mount || need mount
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || [ -e /usr/share/keyrings/debian-archive-keyring.pgp ] ||
    need debian-archive-keyring
[ -e /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates
if [ "$tests" ]; then
    has sysctl || need procps
    has strace || need strace
    has valgrind || need valgrind
    # The package may also start a service; the tests start their own.
    has etcd || need etcd-server
    has promtool || need prometheus
    has kubectl || need kubernetes-client
    [ -e /opt/cni/bin/host-local ] || [ -e /usr/lib/cni/host-local ] || need containernetworking-plugins
fi

if [ -n "$missing" ]; then
    echo "installing:$missing"
    if ! has apt-get; then
        echo "this is no Debian: install what corresponds to these packages:$missing" >&2
        exit 1
    fi
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null
    # shellcheck disable=SC2086 # a list of names
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing </dev/null
fi

"$python" - <<'PYTHON'
import sys

if sys.version_info < (3, 11):
    sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; give one from 3.11 on: make PYTHON=python3.11")
PYTHON
