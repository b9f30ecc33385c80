"""Dense nets: their layers, models by name, and estimators."""
