"""Export results as JSON Lines, CSV or Parquet."""
