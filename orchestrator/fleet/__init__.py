"""Fleets carry out orders: in this process, or with Ray actors on a cluster."""
