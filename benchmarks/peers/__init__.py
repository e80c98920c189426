"""Other people's ways to serve such a model, started by benchmarks.bench to compare with.

Each reads PEER_MODEL, a folder with the graph and its card, where it has the same weights.
"""
