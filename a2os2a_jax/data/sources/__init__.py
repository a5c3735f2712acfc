"""One file for each kind of source, each with `load(...) -> pipeline.Dataset`.

The arguments of a `load` are what the source can honour; `data.load` refuses the rest.
"""
