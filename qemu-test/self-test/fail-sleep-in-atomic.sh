# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# kernel: debug
# file: build/faulty/faulty.ko
# want: the kernel complained: .*BUG: scheduling while atomic
insmod /presnap/faulty.ko fault=sleep-in-atomic
rmmod faulty
