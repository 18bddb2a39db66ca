"""`python -m mlsemi` is the same as `mlsemi`."""

from mlsemi.cli import main

main()
