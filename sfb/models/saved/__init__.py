"""Model files, prediction from them by NumPy alone, and other packages' formats."""
