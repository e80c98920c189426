"""The data set: its files, classes, duplicates, scans and folds, and drawn phantoms."""
