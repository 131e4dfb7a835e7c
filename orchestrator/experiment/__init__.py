"""What a configuration means: its runs, their lengths, cohorts and bases."""
