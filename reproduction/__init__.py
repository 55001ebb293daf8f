"""The papers' experiments by name: published numbers, the commands that reproduce them, and what those measured.

``entries/*.toml`` hold the published numbers and commands, ``results/*.json`` the measurements, and ``RESULTS.md`` is
generated from both; ``python -m scripts.reproduce`` is the command line.
"""
