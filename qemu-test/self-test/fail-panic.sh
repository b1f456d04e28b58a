# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# want: the VM died.*the kernel complained: .*
. /presnap/lib.sh
null_blk nullb9 8
dmsetup create l --table '0 8192 linear /dev/nullb9 0'
dmsetup suspend l
echo 1 >/proc/sys/kernel/hung_task_panic
echo 2 >/proc/sys/kernel/hung_task_timeout_secs
dd if=/dev/zero of=/dev/mapper/l bs=4k count=1 conv=fsync
