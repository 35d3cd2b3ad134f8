"""Parts that several baselines are made of, one file each."""
