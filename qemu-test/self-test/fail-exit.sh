# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# want: exit code 3
exit 3
