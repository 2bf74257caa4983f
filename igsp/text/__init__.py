"""Calibration text: sources of the catalogue, windows of tokens, what they are like."""

# Of the windows of a calibration set. Whoever changes these numbers raises it: tests/test_golden.py.
VERSION = 1
