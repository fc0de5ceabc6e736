"""Results written as JSON Lines, CSV or Parquet."""
