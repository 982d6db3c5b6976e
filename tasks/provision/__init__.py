"""The steps that make a VM, shared by the operations that do: spawn, its rescue form, and later the resize."""
