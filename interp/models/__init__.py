"""All that touches weights: checkpoints, hooks, activations, generation, fine-tuning."""
