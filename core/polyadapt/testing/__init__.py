"""The public testing kit: what core's own plugins, methods and families must pass, held to anyone's by the same functions."""
