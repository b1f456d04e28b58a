# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# Nor is every message of the kernel one.
echo '<4>device-mapper: table: 253:0: presnap: Region is not formatted' >/dev/kmsg
