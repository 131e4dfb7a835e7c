"""What every section of the configuration is, and how its keys that name paths are written."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A frozen, strict part of the configuration; an unknown key is an error."""

    # Docstrings of fields are descriptions, from which configs/README.md is generated.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _named_paths(value: Any) -> Any:
    """A path, a list of paths, or {name: path}; all become {name: path}."""
    if isinstance(value, str):
        return {value: value}
    if isinstance(value, list):
        return {str(path): str(path) for path in value}
    return value


NamedPaths = Annotated[dict[str, str], BeforeValidator(_named_paths)]
