"""How much refusal does steering buy, at what over-refusal? SARSteer (paper D) beside its baselines, at equal cost.

`data.py` has the requests, `trial.py` is one point of one organism, `grid.py` says which points there are, `operating.py` reads them at
equal cost, `geometry.py` looks at the vectors, `study.py` runs it all, `recipe.py` runs real checkpoints. Arms: `methods/steering_arms.py`.
"""
