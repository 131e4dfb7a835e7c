"""The reference of the configuration in configs/README.md."""

import dataclasses

from orchestrator.config import Experiment
from orchestrator.config.error_messages import keys
from orchestrator.config.reference import CONFIG_README, MARKER, reference
from workers.recipes import RECIPES


def test_the_reference_is_that_of_the_code() -> None:
    """If it fails: python -m orchestrator.config.reference."""
    assert CONFIG_README.read_text().partition(MARKER)[2].strip() == reference().strip()


def test_every_key_and_every_option_has_a_row() -> None:
    text = reference()
    for key in keys(Experiment, lists=True):
        section, _, rest = key.partition(".")
        assert f"| `{rest or section}` |" in text or f"### `{section}`" in text
    for recipe in RECIPES.values():
        for field in dataclasses.fields(recipe):
            assert f"| `{field.name}` |" in text


def test_values_bounds_and_defaults_are_in_plain_words() -> None:
    text = reference()
    assert "| `image_size` | whole number (at least 8, at most 8192) | `null` |" in text
    assert "| `crop` | [number, number] or `center` | `[0.35, 1.0]` |" in text
    assert "| `recipes` | [recipe or {recipe: options}, ...] |" in text
    assert "| `alpha` | number (above 0, below 1) | `0.05` |" in text
