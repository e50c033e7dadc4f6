"""What people look at: pages, charts, tables, films and the experiment log.

A file lives here if it shows numbers that other rooms have made.
"""
