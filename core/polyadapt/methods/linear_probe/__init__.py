"""A class head on the frozen backbone."""
