"""PyTorch: data-parallel training whose linear layers send factors, and the backend "sfb" of torch.distributed."""

from sfb.torch.attach import attach
from sfb.torch.distributed.backend import register
from sfb.torch.handle import Handle

__all__ = ["Handle", "attach"]

register()
