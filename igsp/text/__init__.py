"""Calibration text: sources of the catalogue, windows of tokens, what they are like."""
