"""Quantizers of quantization-aware training, put into a network."""
