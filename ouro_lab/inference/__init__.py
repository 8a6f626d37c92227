"""What a trained model does: when a token stops looping."""
