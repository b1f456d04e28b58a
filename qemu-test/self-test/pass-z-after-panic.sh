# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# The scenarios after one in which the VM dies get another VM.
[ "$(cut -d. -f1 /proc/uptime)" -lt 1000 ]
