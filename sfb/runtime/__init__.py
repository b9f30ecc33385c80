"""The means by which ranks act together: agreement, shared memory, messages between nodes, requests."""
