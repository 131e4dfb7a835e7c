"""The driver: the loop of an experiment, its ledger, its lease, and its signals."""
