"""infnet: a multitask recommender built on INFNet (arXiv:2508.11565), trained and served on Ray."""
