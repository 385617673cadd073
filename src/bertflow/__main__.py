"""`python -m bertflow`."""

from bertflow.cli import script

script()
