"""What every stage uses: parameters, paths, errors, the runner and the record of runs."""
