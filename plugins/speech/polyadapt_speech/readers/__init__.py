"""Readers of collections of speech that Debian packages bring."""
