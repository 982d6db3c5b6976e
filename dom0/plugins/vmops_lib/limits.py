"""Sizes and times that the platform sets, and ours below them."""

#: Names of VMs, VIFs and the like, as XAPI spells them.
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: A domain's number: not dom0's.
DOMID = r"[1-9][0-9]{0,4}"
#: What one message to xenstored may carry: path, NUL and value together.
XENSTORE_BYTES = 4096
#: The longest value that oxenstored, the daemon of XenServer and XCP-ng, takes by default, from dom0 too (measured).
OXENSTORED_BYTES = 2048
#: XAPI holds a result in memory several times.
RESULT_BYTES = 1 << 20
#: A compressed document may not become larger than this.
DOCUMENT_BYTES = 8 << 20
#: XAPI ends no plugin: each function ends itself after this time, unless it says otherwise.
DEADLINE_S = 60
#: The longest wait for something outside dom0's control, such as a guest.
WAIT_S = 60
