"""Does benign spoken fine-tuning break refusal, does nearness to harm decide it, and where in the network does it happen? (paper A)

1. `pool.py`: benign speech near to harmful speech in its words, in its voices, in both and in neither; and what everything is asked.
2. `prepare.py`: what the frozen encoder makes of a pool, its distances on every axis, and whether the pool differs where it should.
3. `trial.py`: one fine-tuning on a subset (`tuning.py`), asked (`asking.py`) and looked into (`mechanism.py`, `causal.py`).
4. `grid.py`, `study.py`: which trials there are, each computed once; `effects.py`, `conclusion.py`: what the intervals say.
"""
