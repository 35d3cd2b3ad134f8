"""What all objectives share."""

from pydantic import NonNegativeFloat

from rayrun.config import Config


class Base(Config):
    """One part of the loss."""

    weight: NonNegativeFloat = 1.0
