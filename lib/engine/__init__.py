"""Networks on compute-in-memory arrays."""
