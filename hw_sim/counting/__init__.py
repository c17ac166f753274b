"""Count the operations of an inference."""
