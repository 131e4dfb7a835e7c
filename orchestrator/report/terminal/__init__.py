"""The report on a terminal: a live table, plain lines, and the final tables."""
