"""Results: reading them in pieces, and delivering them to where they are wanted."""
