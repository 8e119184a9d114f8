"""Bases that several strategies share."""
