"""Serving: a trained model as a bundle, and the application that answers requests with it."""
