"""`python -m orchestrator` is `soupfleet`."""

from orchestrator.cli import main

main()
