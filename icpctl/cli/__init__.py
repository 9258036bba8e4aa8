"""The command line: the commands and their options."""

from icpctl.cli.app import main

__all__ = ["main"]
