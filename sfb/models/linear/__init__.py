"""Linear models: classifiers by gradients or dual coordinates, and regression with l1 penalties."""
