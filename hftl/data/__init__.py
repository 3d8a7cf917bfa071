"""Rows in, canonical splits out: `load`, `columns`, `labels`, `audit` and `subsets`, used in this order by `run`."""
