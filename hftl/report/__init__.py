"""What does a reader see of a comparison? Turns `results.json` into one page, its Markdown and four drawings.

It shows numbers and computes none: it must not read a run folder, nor load torch or transformers.
"""
