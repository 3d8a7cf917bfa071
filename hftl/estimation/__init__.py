"""What will a run cost in memory, operations, seconds and money? Told before anything but a configuration is read."""
