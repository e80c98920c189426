"""Scores archives of chest-CT slices without a server, with the code that the service answers with: chestct."""
