"""Runs that survive: committed checkpoints, exact resume, signals, and the proof that they work."""
