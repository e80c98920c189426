"""The network: its backbone, its head, its augmentation and its training."""
