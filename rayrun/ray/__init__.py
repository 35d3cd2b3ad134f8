"""Everything of ours that names Ray or DeepSpeed, imported lazily."""
