"""How good a model is, and the numbers that turn its scores into decisions."""
