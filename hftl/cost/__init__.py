"""What a run cost: seconds, floating-point operations and memory. Nothing here knows what was trained."""
