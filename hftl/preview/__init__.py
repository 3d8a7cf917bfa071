"""What can be known before a run, or proven of one: audit, estimate, resume."""
