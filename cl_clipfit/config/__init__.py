"""Option types, recipes, parsing, YAML. Imports no PyTorch."""
