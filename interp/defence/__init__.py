"""Which way of fine-tuning keeps an organism safe at equal utility? Trials of defences, run, compared and put into words.

1. `trial.py`: one fine-tuning by one method, evaluated on its way and attacked at its end.
2. `grid.py`: which trials a comparison takes, and the tuning of every method with the same budget.
3. `runner.py`: many trials in processes, each computed once.
4. `compare.py`: safety at equal utility, paired over seeds, with intervals; `conclusion.py`: what they say.
5. `geometry.py`: spectra, conflict and overlap of safety and utility gradients.
"""
