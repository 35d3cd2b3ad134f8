"""Training: a pure step, a loop that runs without Ray, and the one file that runs it on Ray."""
