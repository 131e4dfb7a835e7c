"""`import workers.model` registers the project's own architectures, `soupfleet_*`, with timm.

The README of a served model of such an architecture says so; nothing else is needed to load it.
"""

import workers.models.heads
import workers.models.resnext_vit  # noqa: F401
