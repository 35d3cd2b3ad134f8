"""rayrun: the floor both recommenders stand on (configuration, storage, provenance, Ray). It knows no model."""

__version__ = "0.1.0"
