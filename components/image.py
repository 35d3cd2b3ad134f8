"""The container image of every step."""

import os

IMAGE = os.environ.get("INFNET_IMAGE", "infnet-ray:0.1.0")
"""Read when a pipeline is compiled; `INFNET_IMAGE` names that of your registry."""
