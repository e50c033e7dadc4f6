"""The stages, prepare to evaluate: each reads finished directories and writes one of its own.

A file is a stage (`run` writes its directory) or one noun of a stage.
"""
