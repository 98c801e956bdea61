#!/usr/bin/env bash
# pytest 9.2.0 on CPython 3.11: whether a stopped session says "interrupted" depends on the instruction that the signal meets.
#
# Ctrl-C becomes KeyboardInterrupt between two instructions, also where a function has not reached its first line; for
# such a place, as for code that was generated without a table of lines, tb_lineno is None, as the language's reference
# allows. pytest computes tb_lineno - 1 where it shows where the interrupt came from: the session then ends with a
# TypeError and status 1, "some tests failed", in place of status 2. Seen once in some hundred interrupted sessions; here
# the same place is made on purpose, by a function without lines. A session whose function has lines ends with 2.
# A plugin helps itself in pytest_keyboard_interrupt, by excinfo.traceback.filter(...).
#
# Seen on 2026-11-29: "with lines: status 2", "without lines: status 1, TypeError: unsupported operand type(s) for -:
# 'NoneType' and 'int'".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pytest==9.2.0
cat > "$folder/test_stop.py" <<'EOF'
import os

def stop():
    raise KeyboardInterrupt

if "WITH_LINES" not in os.environ:
    stop.__code__ = stop.__code__.replace(co_linetable=b"")

def test_stop():
    stop()
EOF
cd "$folder"
status=0
WITH_LINES=yes env/bin/python -m pytest -q -p no:cacheprovider test_stop.py > with.txt 2>&1 || status=$?
echo "with lines: status $status"
[ "$status" = 2 ] || { echo "changed: an interrupted session had status 2"; exit 1; }
status=0
env/bin/python -m pytest -q -p no:cacheprovider test_stop.py > without.txt 2>&1 || status=$?
echo "without lines: status $status, $(grep -m1 -o 'TypeError: .*' without.txt)"
[ "$status" = 1 ] && grep -q "TypeError: unsupported operand" without.txt || { echo "changed"; exit 1; }
