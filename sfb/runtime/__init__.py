"""What ranks need to act together: agreement, shared memory, messages between nodes, requests."""
