"""The configuration: one frozen Experiment, read strictly from YAML and dotted overrides."""

from orchestrator.config.experiment import (
    Experiment,
    dump,
    import_recipes,
    infinite,
    load,
    num_ranks,
    read,
    uri,
    worker_config,
)

__all__ = [
    "Experiment",
    "dump",
    "import_recipes",
    "infinite",
    "load",
    "num_ranks",
    "read",
    "uri",
    "worker_config",
]
