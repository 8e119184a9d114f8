"""Readers for official data formats: from files to a `Source`, or to its parts."""
