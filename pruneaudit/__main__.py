"""``python -m pruneaudit``: the command, also where its script is on no path."""

from pruneaudit.cli import main

main()
