"""Readers of data in their official formats: files to a `Source`, or to its parts."""
