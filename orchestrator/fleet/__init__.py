"""Fleets: who carries out orders. In this process, or as Ray actors on a cluster."""
