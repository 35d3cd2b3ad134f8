"""layer_select: find which transformer layers of a language model matter for recommending."""
