"""The experiments of the papers by name: published numbers, the commands that make ours, and what they gave.

``entries/*.toml`` are the data, ``results/*.json`` what was measured, ``RESULTS.md`` is made from both;
``python -m scripts.reproduce`` is the command line.
"""
