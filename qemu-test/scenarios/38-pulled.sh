# SPDX-License-Identifier: GPL-2.0-only
# nvme: 32M:origin 64M:region 64M:region2 64M:region3
# pullable: yes
# file: qemu-test/oracle.sh:/presnap/oracle.sh
# timeout: 240
# cost: 25
# Disks that are pulled out while writers write: the region, with a live image and a view; the region again, with a snapshot in the
# making; the origin. What is left works, or says what is wrong; nothing hangs, and all can be removed.
. /presnap/lib.sh
. /presnap/oracle.sh
load
O=$(serial_disk origin)
oracle
pull() { # pull SERIAL: until its disk is gone
	local disk
	disk=$(serial_disk "$1")
	echo "pull $1" >/dev/ttyS1
	wait_for 30 sh -c "[ ! -e /sys/block/${disk#/dev/} ]"
}
create() { # create SERIAL [FEATURE...]
	R=$(serial_disk "$1")
	shift
	presnap format --origin "$O" "$R" --force >/dev/null 2>&1
	dmsetup create p --table "0 65536 presnap $O $R $# $*"
	S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
}
stat() { cat "$S/stats/$1"; }

# The region, under an image that is being read.
create region
snap scope image
image 1
writers 0 4096
another_round
cat /dev/mapper/v >/dev/null
event_begin
pull region
# What the image has not got yet.
put 5000 64 11
wait_for 30 sh -c "dmsetup status p | grep -q Invalid"
event_end
said "I/O error on the region"
another_round
stop "the region is pulled"
expect_fail dd if=/dev/mapper/v of=/dev/null bs=1M iflag=direct
expect_fail dmsetup message p 0 snapshot
[ "$(stat io_errors)" -gt 0 ] || die "no error was counted"
note "$(stat io_errors) errors, $(stat io_retries) tried again"
timeout 30 dmsetup remove v
timeout 30 dmsetup remove p
cmp "$O" /tmp/want || die "the origin after the close"
ok "a region that is pulled: the image is gone, the origin is not"

# With a snapshot in the making. Even where writes are to fail when the region is full: one that is gone keeps nothing any more.
create region2 on_error fail-writes
writers 0 4096
another_round
id=$(dmsetup message p 0 snapshot within 2000)
pull region2
wait_for 30 sh -c "dmsetup status p | grep -q Invalid"
another_round
stop "the region is pulled from under a snapshot"
state_is "$id" dropped || die "snapshot $id: $(dmsetup message p 0 state "$id")"
timeout 30 dmsetup remove p
cmp "$O" /tmp/want || die "the origin after the close"

# The origin.
create region3
snap scope image
put 0 64 9
presnap send p 1 -o /tmp/full 2>/dev/null
pull origin
expect_fail put 512 16 1
expect_fail dd if=/dev/mapper/p of=/dev/null bs=1M count=1 iflag=direct
timeout 20 dmsetup status p >/dev/null
dmsetup message p 0 snapshot freeze_budget unlimited scope delta >/tmp/id 2>&1 || :
sleep 1
status
timeout 60 dmsetup remove p
presnap check --data "$R" >/tmp/check 2>&1 || die "the region after the origin was pulled: $(cat /tmp/check)"
ok "an origin that is pulled: errors, and a region that is whole"
