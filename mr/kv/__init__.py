"""Key-value stores: the record of everything. One module a technology."""
