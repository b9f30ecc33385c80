"""A timeline of what each rank does, and of what it waits for.

With ``SFB_TRACE=DIR``, or ``Comm(trace=DIR)``, each rank writes a file into DIR at its end; ``sfb trace merge DIR`` and
``sfb trace report DIR`` read them.
"""

from sfb.trace.files import TraceError
from sfb.trace.settings import from_environment
from sfb.trace.spans import span

__all__ = ["TraceError", "span"]

from_environment()
