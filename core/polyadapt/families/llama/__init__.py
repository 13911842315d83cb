"""Llama and Qwen2: rotary positions, grouped key/value heads, gated FFN."""
