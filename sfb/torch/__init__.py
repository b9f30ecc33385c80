"""PyTorch over MPI: the backend "sfb" of `torch.distributed`, registered by this import."""

from sfb.torch.backend import register

register()
