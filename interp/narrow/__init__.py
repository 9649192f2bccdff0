"""Narrow fine-tuning of a model with character (paper B): does misalignment spread, along how many dimensions, and what mends it?

`trial.py` is one fine-tuning and what is measured of it, `grid.py` which of them a study takes, `outcomes.py` how their curves are read,
`conclusion.py` what that says; `experiments/vlm_narrow.py` drives.
"""
