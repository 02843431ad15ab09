"""Experiments: `config=A.B.C` on the command line is the dictionary `config` of the module config/A/B/C.py."""
