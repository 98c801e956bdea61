"""What a piece of code costs, told without a clock: busy machines, and those that trace lines, get the same answer."""

import sys
from collections.abc import Callable


def calls(function: Callable[[], object]) -> int:
    """How many functions, Python's and built-in ones, are called until ``function`` returns."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count
