"""How does one run a grid of an experiment, here or on a cluster, and lose nothing?

1. `grid.py`: a YAML file, checked cell by cell before anything runs.
2. `cell.py`: one cell: computed once under the hash of what made it, resumed after a kill, its failure named with its log.
3. `launch.py`: many cells through submitit: processes of this machine, or Slurm.
"""
