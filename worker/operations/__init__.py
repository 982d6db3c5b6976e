"""The engine: how an operation is declared, kept, carried out, woken, undone and driven on."""
