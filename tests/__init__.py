"""Tests. A busy machine is no failure: properties have no deadline."""

from hypothesis import settings

settings.register_profile("paft", deadline=None)
settings.load_profile("paft")
