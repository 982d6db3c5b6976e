"""XAPI's hook for VIFs, /etc/xapi.d/vif-hotplug: a filtered VIF that comes or goes gets the rules of its new port.

So rules are there before the first packet of a VM that starts after the host has, when nobody has called yet, or on a
bridge that was made for it. XAPI waits for the hook and looks at nothing that it does: it says what fails in syslog.
"""

import sys

from vmops_lib import firewall, log
from vmops_lib.failures import Failure


def main() -> None:
    """Enforce again what is written down, if the VIF is of it."""
    words = sys.argv[1:]
    said = dict(zip(words[::2], words[1::2]))
    uuid = said.get("-vifuuid", "")
    try:
        if firewall.knows(uuid):
            firewall.restore()
    except Failure as failure:
        log.say("vmops-vif-hotplug", "%s: %s" % (failure.code, failure))
