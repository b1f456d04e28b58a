# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# timeout: 1
# want: timed out
sleep 1000
