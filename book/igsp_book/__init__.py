"""Tooling of the book: its Sphinx extension, the runner of its notebooks, builds and the course. Not part of `igsp`."""
