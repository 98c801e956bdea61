#!/usr/bin/env bash
# hypothesis 6.170.17 with pytest 9.2.0: every session imports hypothesis at its end, also one without such a test.
#
# The plugin takes care not to import the package before a test needs it. Its pytest_terminal_summary then asks
# hypothesis.internal for files that were written, and so imports everything: a second of CPU where hypothesis is
# installed but not used, as in a suite of short sessions that run pytest inside pytest. "-p no:hypothesispytest" avoids it.
#
# Seen: not imported when the only test (which does not use it) ends, 77 of its modules when the session is over.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pytest==9.2.0 hypothesis==6.170.17
cat > "$folder/conftest.py" <<'PY'
import sys


def loaded():
    return sum(name.partition(".")[0] == "hypothesis" for name in sys.modules)


def pytest_runtest_logfinish(nodeid):
    print("\nmodules of hypothesis when the test ends:", loaded())


def pytest_unconfigure(config):
    print("modules of hypothesis when the session is over:", loaded())
PY
echo 'def test_nothing(): pass' > "$folder/test_plain.py"
cd "$folder"
for option in "" "-p no:hypothesispytest"; do
    echo "pytest $option"
    # shellcheck disable=SC2086
    env/bin/python -m pytest -q -s -p no:cacheprovider $option test_plain.py | grep modules | tee seen
    grep -q "ends: 0" seen
    if [ -z "$option" ]; then
        test "$(sed -n 's/.*over: //p' seen)" -gt 50
    else
        grep -q "over: 0" seen
    fi
done
