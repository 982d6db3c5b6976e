"""What the vmops plugins of a dom0 share. Python 3.6 to 3.13, standard library only; see ../../README.md."""

#: The version of the pack: files that are installed together.
PACK = "1.0.0"
#: What its functions take and give. A caller that names another one is refused.
API = 1
