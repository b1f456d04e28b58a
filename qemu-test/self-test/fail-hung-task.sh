# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# want: the kernel complained: .*INFO: task dd.* for more than
# A reader of a suspended device.
. /presnap/lib.sh
null_blk nullb9 8
dmsetup create l --table '0 8192 linear /dev/nullb9 0'
dmsetup suspend l
echo 2 >/proc/sys/kernel/hung_task_timeout_secs
# Not a direct one: that waits in a way that the watchdog takes for patience.
dd if=/dev/mapper/l of=/dev/null bs=4k count=1 &
wait_for 30 sh -c 'dmesg | grep -q "INFO: task dd"'
echo 120 >/proc/sys/kernel/hung_task_timeout_secs
dmsetup resume l
wait
