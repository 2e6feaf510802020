"""Prints the report of work directories or of a sweep: `python -m sea_jax.report <folder> [<folder> …]`."""

import sys

from sea_jax.report.report import main

main(sys.argv)
