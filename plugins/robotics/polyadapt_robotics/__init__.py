"""Robotics plugin of Polyadapt: policies that learn from demonstrations, corrections and events."""

__version__ = "0.1.0"
