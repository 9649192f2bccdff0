"""Where does refusal live in an organism, where did a fine-tune break it, and does putting only that back restore it?

1. `subject.py`: organisms, their fine-tunes and the prompts they are asked.
2. `trial.py`: one organism, or one of its fine-tunes, measured by activation patching; `restore.py`: by transplants of weights.
3. `runner.py`: many trials in processes, each computed once.
4. `compare.py`: numbers over organisms with intervals; `conclusion.py`: what they say; `report.py`: tables and figures.
"""
