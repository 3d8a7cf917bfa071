"""Publishing a run: files, gate, model card, upload. `push.py` is the page to read."""
