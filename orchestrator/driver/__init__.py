"""The driver: the loop of an experiment, with its ledger, lease and signals."""
