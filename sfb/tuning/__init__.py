"""Which algorithm to take: prices by a measured profile, and trials."""
