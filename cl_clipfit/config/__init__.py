"""Option types, recipes, parsing, YAML. Does not import PyTorch."""
