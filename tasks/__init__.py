"""The operations: one module for each capability, each its steps and the chain that composes them."""
