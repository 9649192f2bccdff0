"""One question a file: `python -m probes.NAME …`, or `interp probe NAME …` from anywhere."""
