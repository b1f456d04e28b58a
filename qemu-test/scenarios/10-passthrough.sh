# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# timeout: 120
# What is written through the target is on the origin; size, flush, discard and zeroing are those of the origin.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
presnap format --origin "$O" "$R" --force
dmsetup create p --table "0 $(sectors "$O") presnap $O $R"
dmsetup status p
dmsetup table p
eq "$(blockdev --getsz /dev/mapper/p)" "$(sectors "$O")" size
fio --name=w --filename=/dev/mapper/p --rw=randwrite --bs=4k --size=24M --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 --end_fsync=1 >/tmp/fio.log || { cat /tmp/fio.log; die fio; }
ok "fio verifies its writes"
cmp -n 25165824 /dev/mapper/p "$O" && ok "the origin has the same content"
blkdiscard -o 1M -l 8M /dev/mapper/p && ok discard
blkdiscard -z -o 16M -l 24M /dev/mapper/p && ok zeroes
cmp -n $((24 * 1048576)) -i 16M /dev/mapper/p /dev/zero && ok "zeroes read back"
dmsetup message p 0 state 1
[ "$(dmsetup message p 0 list)" = - ]
expect_fail -m "unrecognised message" dmsetup message p 0 frobnicate
cat /sys/block/dm-0/presnap/predictor /sys/block/dm-0/presnap/op
dmsetup remove p
ok "removed"
