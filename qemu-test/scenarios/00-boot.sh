# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# The stock kernel loads dm-presnap.ko, the target is there, and the module goes away again.
. /presnap/lib.sh

want=$(cat /presnap/release)
got=$(uname -r)
[ "$got" = "$want" ] || die "the kernel is $got, not $want"
[ -e /presnap/dm-presnap.ko ] || die "there is no dm-presnap.ko: build it with make module"
insmod /presnap/dm-presnap.ko || die "dm-presnap.ko does not load"
dmsetup targets | grep '^presnap ' || die "dmsetup targets does not list presnap"
rmmod dm_presnap || die "the module does not unload"
ok "kernel $got, module loaded and unloaded"
