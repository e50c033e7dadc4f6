"""What lies in a stage's directory: tables, manifests, and who may write them.

A file lives here if more than one stage reads or writes what it describes.
"""
