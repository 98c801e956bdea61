"""Questions that another process answers: what is loaded there, and what goes wrong there, stays there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def asked(module: str, job: Mapping[str, Any], seconds: float) -> list[dict[str, Any]]:
    """What another process says, as far as it comes.

    Args:
        module: A module of this project. Its ``main`` reads the job from standard input, and writes a line of JSON for
            each thing that it finds.
        job: What is asked, in JSON's types.
        seconds: When the process is ended.
    """
    code = f"import sys; sys.path[:] = {list(sys.path)!r}; from {module} import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            written, _ = process.communicate(json.dumps(job).encode(), seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            written, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    found = []
    for line in written.decode(errors="replace").splitlines():
        # A last line may be torn.
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict):
                found.append(said)
    return found
