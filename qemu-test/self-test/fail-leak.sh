# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# kernel: debug
# file: build/faulty/faulty.ko
# want: leaks: 1
insmod /presnap/faulty.ko fault=leak
rmmod faulty
