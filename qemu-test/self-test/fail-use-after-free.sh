# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# kernel: debug
# file: build/faulty/faulty.ko
# want: the kernel complained: .*BUG: KASAN: slab-use-after-free
insmod /presnap/faulty.ko fault=use-after-free
rmmod faulty
