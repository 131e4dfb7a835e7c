"""The base class of all sections of the configuration, and the type of keys that name paths."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A frozen part of the configuration. An unknown key is an error."""

    # Docstrings of fields are descriptions, from which configs/README.md is generated.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    first_defaults: ClassVar[dict[str, Any]] = {}
    """First default of every key whose default has changed since, as JSON; keeps ids of runs."""


def _named_paths(value: Any) -> Any:
    """{name: path} of a path, a list of paths, or {name: path}. A bare path is its own name."""
    if isinstance(value, str):
        return {value: value}
    if isinstance(value, list):
        return {str(path): str(path) for path in value}
    return value


NamedPaths = Annotated[dict[str, str], BeforeValidator(_named_paths)]
