"""How any recipe becomes a bundle: train, export, optimize, verify, package."""
