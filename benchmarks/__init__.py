"""What measures and compares speed: commands that write figures, and the servers to compare with."""
