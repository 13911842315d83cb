"""The command line. Only this floor prints; every command is imported when it is used."""

from polyadapt.cli.app import main

__all__ = ["main"]
