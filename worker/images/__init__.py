"""Image stores behind one interface, and the bytes on their way to and from a pool."""
