"""Files: whole or absent, checked, and loading that runs no code."""
