"""The host: finds plugins, keeps the table of who owns what, and calls the owner."""

from polyadapt.host.host import Host
from polyadapt.host.plugin import Plugin
from polyadapt.host.registry import Registry

__all__ = ["Host", "Plugin", "Registry"]
