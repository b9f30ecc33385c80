"""What is to be known of a cluster before work starts on it: ``sfb doctor``.

Each module looks at one topic. Its ``facts`` or ``measure`` collect what a rank sees, and its ``judge``, a function of
what all ranks have collected, returns findings.
"""

from sfb.doctor.finding import Finding, Level, error, ok, warning, worst

__all__ = ["Finding", "Level", "error", "ok", "warning", "worst"]
