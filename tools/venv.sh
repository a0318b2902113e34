#!/bin/sh
# Make the virtual environment, and install this checkout in it for development.
# Usage: tools/venv.sh PYTHON VENV
set -eu

# The installed executables name the interpreter, which a version manager's shim is not.
python=$("$1" -c 'import sys; print(sys.executable)')
venv=$2

install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" </dev/null
}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing the project and its tools into $venv (some downloads)"
# With the build tools in the environment, later builds compile only changed modules.
"$venv/bin/python" -c '
import tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))
' >"$venv/build-requires.txt"
install -r "$venv/build-requires.txt"
install --no-build-isolation -e '.[dev]'
