"""Side by side with other tools: each benchmark prints a table and writes JSON."""
