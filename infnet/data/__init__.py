"""From a raw log to shards (`prepare`), and from shards to batches (`loader`)."""
