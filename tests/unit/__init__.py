"""One file a module, and the order of the modules."""
