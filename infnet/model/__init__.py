"""INFNet: read `infnet.py` first. This room knows torch and the schema, and nothing of training."""
