# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# allow: BUG: a test expects this
# want: the kernel complained: .*WARNING: and not this
echo '<4>BUG: a test expects this' >/dev/kmsg
echo '<4>WARNING: and not this' >/dev/kmsg
