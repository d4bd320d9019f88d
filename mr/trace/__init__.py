"""A request's invocations to look at: as a tree, as text, as a drawing."""
