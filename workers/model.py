"""Importing this file registers the architectures `soupfleet_*` with timm.

Nothing else is needed to load a served model of such an architecture in plain timm.
"""

import workers.models.heads
import workers.models.resnext_vit  # noqa: F401
