"""Verdicts, judges and the statistics every number carries."""
