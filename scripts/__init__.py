"""Commands: each file is an ``Args`` dataclass and a ``main(args)``; ``parts`` has what several of them share."""
