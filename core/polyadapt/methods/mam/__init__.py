"""MAM: prefix and scaled parallel adapters."""
