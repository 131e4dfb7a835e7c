"""One file per verb of the command line; what a verb does, without its options."""
