"""The one training loop of layer_select: pretraining and healing are two things it learns."""
