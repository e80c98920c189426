"""The data set: its files, classes, duplicates, clusters of look-alikes and folds, and drawn phantoms."""
