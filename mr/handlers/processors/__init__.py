"""What runs handler source: one module a language."""
