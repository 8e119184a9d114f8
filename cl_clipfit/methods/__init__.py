"""Base classes and terms that several strategies share."""
