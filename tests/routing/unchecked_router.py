"""A router whose checks of where data may go are taken out, to show that the proof of residency can fail. Never start it for anything else.

Its workers import this file anew, as multiprocessing's `spawn` does with the main program, so theirs are taken out, too.
"""

import logging
import sys

from routing import forward, router, server
from routing.policy import Verdict
from routing.settings import Settings
from routing.successor import Place

router.permitted = lambda policy, about, targets: (list(targets), Verdict("allow"))
forward.may_leave = lambda policy, about, *, model, zone: True

if __name__ == "__main__":
    server.log_to_stderr()
    logging.getLogger("inhouse").warning("THE CHECKS OF RESIDENCY ARE TAKEN OUT")
    sys.exit(server.run(Settings.from_environment(), Place.from_arguments([])))
