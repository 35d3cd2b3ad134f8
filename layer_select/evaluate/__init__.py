"""Evaluation: a smaller model beside the full one, its rivals, and what both cost to run."""
