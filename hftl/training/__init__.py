"""One training run, from arguments to a folder that anyone can load; `run` is the page to read."""
