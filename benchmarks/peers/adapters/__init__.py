"""One class for each way of reading; which library it needs is imported in it."""
