"""Speaking XenAPI: sessions over our own transport, and one module for each XenAPI class."""
