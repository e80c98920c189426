"""The optional log of predictions, one row for each, in Parquet files. It is imported only if it is turned on."""
