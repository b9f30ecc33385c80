"""Soak: public calls at random, with random sizes, options, placements and delays, beside an oracle."""
