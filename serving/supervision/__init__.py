"""The supervisor that starts the workers, watches them and replaces those that hang."""
