"""The backend "sfb" of `torch.distributed`: its names, the store with which groups begin, and the process group."""
