"""Search over the configuration: which counts of proxies, and whatever else it names."""
