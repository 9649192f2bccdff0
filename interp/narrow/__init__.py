"""Narrow fine-tuning of a model with character (paper B): does misalignment spread, along how many dimensions, and what mends it?

`trial.py` is one fine-tuning and what is measured of it; `experiments/vlm_narrow.py` drives grids of them.
"""
