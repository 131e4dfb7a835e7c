"""The configuration: one frozen Experiment, read strictly from YAML and dotted overrides."""

from orchestrator.config.experiment import (
    Experiment,
    dump,
    infinite,
    load,
    ranks,
    read,
    setting,
    uri,
)

__all__ = ["Experiment", "dump", "infinite", "load", "ranks", "read", "setting", "uri"]
