"""Prompts and contrast pairs; no torch here."""
