"""Thin drivers of training stages and of each paper: `python -m experiments.NAME …`, or `interp run NAME …`."""
