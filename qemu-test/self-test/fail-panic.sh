# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# want: the VM died.*the kernel complained: .*
echo c >/proc/sysrq-trigger
