"""A quantized network as integer operations."""
