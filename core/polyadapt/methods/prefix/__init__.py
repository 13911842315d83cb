"""Prefix tuning."""
