# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# want: the kernel complained: .*INFO: task dd.* for more than
# A writer to a suspended device, in a wait that nothing can interrupt (a direct one the watchdog takes for patience).
. /presnap/lib.sh
null_blk nullb9 8
dmsetup create l --table '0 8192 linear /dev/nullb9 0'
dmsetup suspend l
echo 2 >/proc/sys/kernel/hung_task_timeout_secs
dd if=/dev/zero of=/dev/mapper/l bs=4k count=1 conv=fsync &
wait_for 30 sh -c 'dmesg | grep -q "INFO: task dd"'
echo 120 >/proc/sys/kernel/hung_task_timeout_secs
dmsetup resume l
wait
