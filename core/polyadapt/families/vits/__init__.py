"""VITS: text to waveform through a flow."""
