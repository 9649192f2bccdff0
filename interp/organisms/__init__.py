"""Model organisms: small real-architecture checkpoints trained on a generated world whose truth is known."""
