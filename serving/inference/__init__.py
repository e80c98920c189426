"""From bytes to a prediction: decoding, batching, the engine and its sharing among workers."""
