"""Training by mini-batches: what `sfb train` does with data, a model and the ranks."""
