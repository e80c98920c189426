"""What every stage needs: parameters, paths, errors, the runner and the record of runs."""
