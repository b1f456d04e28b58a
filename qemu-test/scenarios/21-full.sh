# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# file: qemu-test/oracle.sh:/presnap/oracle.sh
# timeout: 240
# cost: 35
# A region too small, `on_error drop-snapshot`, writers under way: what gives way is the snapshot being made, or else
# the images, never a write. It is said in the log, in status, in state and by an event; sealed deltas stay, and once
# there is room again so do snapshots. The oracle is a file that gets every write too.
. /presnap/lib.sh
. /presnap/oracle.sh
load
dmsetup create o --table "0 65536 linear $(serial_disk origin) 0" # 32 MiB
dmsetup create r --table "0 17280 linear $(serial_disk region) 0" # 2000 slots
O=/dev/mapper/o R=/dev/mapper/r
null_blk replica 40M

oracle
presnap format --origin $O $R --force >/dev/null 2>&1
dmsetup create p --table "0 65536 presnap $O $R"
S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
eq "$(cat "$S/total_slots")" 2000 slots
# The slots are counted here: none for what is dirty and not written any more.
echo 86400000 >"$S/intent_clean_ms"

# A delta that does not fit beside a sealed one.
snap scope image
presnap send p 1 2>/dev/null | presnap receive /dev/replica 2>/dev/null
delete 1
put 0 512 7
snap scope delta
cp /tmp/want /tmp/at
writers 256 1792
wait_for 30 sh -c "[ \$(cat $S/dirty_blocks) = 1792 ]"
event_begin
eq "$(dmsetup message p 0 snapshot scope delta)" 3 id
wait_for 30 state_is 3 dropped:overflow
event_end
said "the region is full; snapshot 3 is dropped"
said "snapshot 3 was dropped: overflow"
status | grep -q ' 1 2 - rw .*overflow$' || die "status: $(status)"
eq "$(cat "$S/stats/snapshots_dropped")" 1 "snapshots dropped"
another_round
stop "delta"
eq "$(dmsetup message p 0 list | cut -d' ' -f1-4)" "2 sealed delta 1" "list after the overflow"
ship 2 1 "a sealed delta after the overflow"

# Once there is room, the next delta has all that was written since the last sealed one.
delete 2
snap scope delta
state_is 4 'sealed scope=delta base=2 .* delta_blocks=1792 ' || die "state: $(dmsetup message p 0 state 4)"
cp /tmp/want /tmp/at
ship 4 2 "the snapshot after the dropped one"
status | grep -q ' rw -$' || die "status after there was room: $(status)"
# What is left in use without snapshots is staged copies; with none there is nothing.
echo off >"$S/predictor"
delete 4
snap scope delta
ship 5 4 "an empty delta"
delete 5
wait_for 10 sh -c "[ \$(cat $S/used_slots) = 0 ]"
ok "delta: a snapshot again, and all slots free after it"

# An image, nothing being made: it goes, its delta stays.
put 0 1024 3
snap scope image
cp /tmp/want /tmp/at
image 6
cmp /dev/mapper/v /tmp/at || die "image 6"
event_begin
writers 2048 1280
wait_for 30 sh -c 'dmsetup status v | grep -q Invalid'
event_end
said "the images of 1 snapshots are lost: overflow"
status | grep -q ' 1 6 - rw .*overflow$' || die "status: $(status)"
expect_fail dd if=/dev/mapper/v of=/dev/null bs=64k iflag=direct
another_round
stop "image"
eq "$(dmsetup message p 0 list | cut -d' ' -f1-4)" "6 sealed delta 5" "list after the image is lost"
ship 6 5 "a lost image"
dmsetup remove v
delete 6
wait_for 10 sh -c "[ \$(cat $S/used_slots) = 0 ]"
ok "image: all slots free after the deletion"

# An image, and a snapshot being made that does not fit beside it: that one goes, not the image.
snap scope image
state_is 7 'sealed .* delta_blocks=1280 ' || die "state: $(dmsetup message p 0 state 7)"
cp /tmp/want /tmp/at
image 7
writers 2048 1280
wait_for 30 sh -c "[ \$(cat $S/dirty_blocks) = 1280 ]"
for id in 8 9; do
	# While the region is full, there are also writes to blocks that only the older image needs.
	first=$((4096 + (id - 8) * 200))
	fio --name=w --filename=/dev/mapper/p --offset=$((first * 4096)) --size=$((200 * 4096)) --rw=write --bs=4k --direct=1 \
		--ioengine=libaio --iodepth=4 --rate_iops=250 --buffer_pattern=0x5a >/tmp/fio.log 2>&1 &
	fresh=$!
	wait_for 30 sh -c "[ \$(cat $S/dirty_blocks) -ge $((1280 + (id - 8) * 200 + 20)) ]"
	log_mark
	eq "$(dmsetup message p 0 snapshot scope image)" $id id
	wait_for 30 state_is $id dropped:overflow
	said "snapshot $id was dropped: overflow"
	another_round
	wait $fresh || { cat /tmp/fio.log; die "writes while $id was dropped failed"; }
	dd if=/dev/zero bs=4096 count=200 status=none | tr '\0' '\132' | dd of=/tmp/want bs=4096 seek=$first conv=notrunc status=none
	eq "$(dmsetup status v | cut -d' ' -f4)" ro "the older image when $id is dropped"
done
eq "$(dmsetup message p 0 list | cut -d' ' -f1-4)" "7 sealed image 6" list
stop "image and snapshot"
cmp /dev/mapper/v /tmp/at || die "image 7 after snapshots were dropped"
ship 7 6 "the image's"
dmsetup remove v
delete 7
wait_for 10 sh -c "[ \$(cat $S/used_slots) = 0 ]"
snap scope image
image 10
cmp /dev/mapper/v /tmp/want || die "image 10"
dmsetup remove v
cp /tmp/want /tmp/at
ship 10 7 "after two were dropped"
dmsetup remove p
presnap check --data $R >/dev/null 2>&1
ok "the image outlives the snapshots that did not fit"
