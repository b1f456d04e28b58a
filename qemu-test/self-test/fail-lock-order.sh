# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# kernel: debug
# file: build/faulty/faulty.ko
# want: the kernel complained: .*WARNING: possible circular locking
insmod /presnap/faulty.ko fault=lock-order
rmmod faulty
