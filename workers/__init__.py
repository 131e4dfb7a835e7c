"""soupfleet: does. Never imports `orchestrator`."""
