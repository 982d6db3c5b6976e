"""The fake dom0 of each host: XenStore, a private root folder, and the plugins that XAPI runs there."""
