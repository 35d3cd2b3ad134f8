"""`pretrain-tiny`: a small decoder of our own, trained on histories of titles."""
