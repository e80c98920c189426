"""Other people's ways to serve such a model. benchmarks.bench starts them for comparison.

Peers with the service's weights read them from the folder PEER_MODEL, which holds the graph and its card.
"""
