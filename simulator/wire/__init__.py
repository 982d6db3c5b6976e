"""Bytes on the wire: HTTP, XML-RPC, JSON-RPC, TLS."""
