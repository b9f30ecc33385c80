"""Profiles of Hypothesis: few inputs in CI, and those of ``--hypothesis-profile=long`` by hand."""

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=30, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=20_000, **_COMMON)
