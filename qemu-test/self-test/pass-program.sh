# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# What a program says is no complaint of the kernel.
echo "WARNING: BUG: Oops, says a program"
