#!/bin/sh
# Prints the interpreter that `make setup` is to use: $1 if it is given, else the first that fits.
# POSIX sh, because it runs before anything else is known of the machine.

fits='import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))'

if [ -n "$1" ]; then
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "setup: PYTHON=$1 was not found. Name an interpreter that is there: make setup PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    if ! "$1" -I -S -c "$fits" 2>/dev/null; then
        # A launcher in place of an interpreter complains on standard error, in many lines: only an answer is quoted.
        version=$("$1" --version 2>/dev/null) || version=
        case $version in
        Python\ *) is="is $version" ;;
        *) is="does not start" ;;
        esac
        echo "setup: PYTHON=$1 $is, and Enclave needs Python 3.11, 3.12 or 3.13." >&2
        echo "       Name another: make setup PYTHON=python3.12" >&2
        exit 1
    fi
    command -v "$1"
    exit 0
fi

for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -I -S -c "$fits" 2>/dev/null; then
        command -v "$candidate"
        exit 0
    fi
done

echo "setup: no Python 3.11, 3.12 or 3.13 was found (python3 is $(python3 --version 2>/dev/null || echo 'not there'))." >&2
echo "       Install one, for instance 'apt install python3 python3-venv', 'dnf install python3.12' or" >&2
echo "       'brew install python@3.12', or name one: make setup PYTHON=/path/to/python3.12" >&2
exit 1
