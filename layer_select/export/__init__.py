"""A smaller model made ready for others: bundles to serve, and Parquet of its vectors."""
