"""A recommender over HTTP: a bundle answers `POST /recommend`."""
