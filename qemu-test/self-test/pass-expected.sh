# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# allow: BUG: a test expects this
echo '<4>BUG: a test expects this' >/dev/kmsg
