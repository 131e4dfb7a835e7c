"""The configuration: one frozen Experiment, read strictly from YAML and dotted overrides."""

from orchestrator.config.experiment import (
    Experiment,
    dump,
    import_recipes,
    infinite,
    load,
    num_ranks,
    public_dump,
    read,
    shown_uri,
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
    "public_dump",
    "shown_uri",
    "read",
    "uri",
    "worker_config",
]
