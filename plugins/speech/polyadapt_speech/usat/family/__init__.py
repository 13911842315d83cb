"""The family `voice`: VITS voices on this plugin's own network."""
