"""Sweeps: which trials there are, what became of each, and the report. No Ray and no torch."""
