"""PyTorch: data-parallel training whose linear layers send factors, and the backend "sfb" of `torch.distributed`.

The import registers the backend. `attach` is imported, and with it MPI initialised, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfb.torch.distributed.backend import register

if TYPE_CHECKING:
    from sfb.torch.attachment import attach
    from sfb.torch.handle import Handle

__all__ = ["Handle", "attach"]

# Where the names are that need MPI.
_NEED_MPI = {"Handle": "sfb.torch.handle", "attach": "sfb.torch.attachment"}


def __getattr__(name: str) -> Any:
    if name not in _NEED_MPI:
        raise AttributeError(f"module 'sfb.torch' has no attribute {name!r}")
    return getattr(import_module(_NEED_MPI[name]), name)


register()
