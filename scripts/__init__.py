"""Command lines: each file is an ``Args`` dataclass and a ``main(args)``."""
