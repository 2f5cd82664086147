"""The walls around a child process: what it may reach, decided in tables and applied once at its start.

`tables` and `filter` decide, `profile` says which paths a child needs, `enter` applies all of it in the child, `status`
lets the daemon check it from outside and `probes` tries to get out. Nothing here imports anything of ours beyond this
folder, or anything third-party: it runs in the child before such code is loaded. Import the module that you need; this
one loads none.
"""

from __future__ import annotations
