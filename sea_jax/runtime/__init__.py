"""Devices, the arrays on them, and the files and progress bars of a run."""
