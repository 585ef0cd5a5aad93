"""`python -m paft`, for launchers that start a module."""

from paft.cli import main

main()
