"""What options of all jobs mean: those that several take, and where a job may write.

A rule for the command line lives here; what a single job does is its own file.
"""

__all__ = ["command", "places"]
