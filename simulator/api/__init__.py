"""The calls of XenAPI, by class. Importing `simulator.api.catalogue` registers them all."""
