"""The Polyadapt plugin demo."""
