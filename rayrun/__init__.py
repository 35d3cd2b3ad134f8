"""The floor both recommenders stand on: configuration, storage, provenance, Ray; no model."""

__version__ = "0.1.0"
