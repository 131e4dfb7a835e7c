"""The meaning of a configuration: its runs, their lengths and ids, its cohorts and bases."""
