"""Figures, tables and the HTML page; draws results, never loads a model."""
