"""What a result is of, where it is, and collecting results; without torch."""
