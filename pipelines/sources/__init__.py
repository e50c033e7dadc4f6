"""Where videos come from: annotation files with their frames, and videos that nobody annotated.

A file here says where pixels and facts lie and reads them one at a time; it computes nothing.
"""
