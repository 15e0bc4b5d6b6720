"""Default values of evaluations, importable without torch."""

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
"""Values of k that k-NN tries."""

SHOTS = (1, 5, 10)
"""Images of a class from which all others are classified."""
