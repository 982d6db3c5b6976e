"""Consoles of VMs: a picture drawn here, shown by RFB, WebSocket, text terminal and snapshot (xapi.md 6.6, 10.2)."""
