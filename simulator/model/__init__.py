"""XenAPI's datamodel, as far as it is simulated: classes, fields, types."""
