"""Flower's settings in the containers. The secret `flower_users` holds one `name:password` a line: who may look."""

from pathlib import Path

basic_auth = Path("/run/secrets/flower_users").read_text(encoding="utf-8").split()
if not basic_auth:
    raise SystemExit("The secret flower_users is empty: put a line `name:password` into it.")

# Without this, whoever may look may also enqueue and revoke tasks.
read_only = True

# The list of tasks says which VM each is about.
tasks_columns = "name,args,state,uuid,runtime,received"
