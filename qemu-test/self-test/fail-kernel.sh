# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# want: the kernel complained: .*BUG: written by a test
echo '<4>BUG: written by a test' >/dev/kmsg
