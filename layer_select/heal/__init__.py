"""`heal`: a smaller model learns to recommend as the full one does."""
