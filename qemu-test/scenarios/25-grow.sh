# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# file: qemu-test/oracle.sh:/presnap/oracle.sh
# timeout: 240
# cost: 25
# A region that grows while writers, a live image and a full region are about: with `presnap grow`, at a resume, and found larger
# at opening. What was there stays; what is new is used. It does not shrink.
. /presnap/lib.sh
. /presnap/oracle.sh
load
region() { echo "0 $1 linear $(serial_disk region) 0"; }
resize() { # resize SECTORS: of the region's device
	dmsetup reload r --table "$(region "$1")"
	dmsetup suspend r
	dmsetup resume r
}
dmsetup create o --table "0 65536 linear $(serial_disk origin) 0" # 32 MiB
# What lies where the region will grow to is no index.
head -c 67108864 </dev/zero | tr '\0' '\245' | dd of="$(serial_disk region)" bs=1M iflag=fullblock oflag=direct status=none
dmsetup create r --table "$(region 17280)" # 2000 slots
O=/dev/mapper/o R=/dev/mapper/r
null_blk replica 40M
oracle
presnap format --origin $O $R --force >/dev/null 2>&1
dmsetup create p --table "0 65536 presnap $O $R"
S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
eq "$(cat "$S/total_slots")" 2000 slots
eq "$(presnap grow p)" "the region device has not grown: 2000 slots" "nothing to grow"

view_is() { # view_is FILE WHAT
	dd if=/dev/mapper/v of=/tmp/seen bs=1M iflag=direct status=none
	cmp /tmp/seen "$1" || die "$2: the image has changed"
	ok "$2: the image is what it was"
}

# A live image, writers, a region nearly full; it grows under them.
put 0 512 7
snap scope image
cp /tmp/want /tmp/image
presnap send p 1 2>/dev/null | presnap receive /dev/replica 2>/dev/null
image 1
writers 256 1024
resize 67840 # 8480 blocks: two segments, and a part of a third
event_begin
eq "$(presnap grow p)" "the region has 8256 slots now, 2000 before" growth
event_end
said "the region has grown to 8256 slots"
another_round
stop "growth under load"
view_is /tmp/image "growth under load"
eq "$(presnap status --json p | jq .total_slots 2>/dev/null || cat "$S/total_slots")" 8256 slots
# More than fitted before.
put 1024 1000 1
put 5000 500 4
snap scope delta
cp /tmp/want /tmp/at
ship 2 1 "a delta larger than the region was"
view_is /tmp/image "a delta larger than the region was"
[ "$(cat "$S/used_slots")" -gt 2000 ] || die "used: $(cat "$S/used_slots")"
dmsetup remove v

# Closed and opened again it is the larger one, and a region like any other.
dmsetup remove p
presnap check --data $R >/tmp/check || die "check: $(cat /tmp/check)"
dmsetup create p --table "0 65536 presnap $O $R"
eq "$(cat "$S/total_slots")" 8256 "slots after opening"
image 1
view_is /tmp/image "opened again"
dmsetup remove v

# It grows at a resume, and what is opened on a larger device grows at once.
resize 67848
dmsetup suspend p
dmsetup resume p
wait_for 10 sh -c "[ \$(cat $S/total_slots) = 8257 ]"
ok "grows at a resume"
dmsetup remove p
resize 131072
dmsetup create p --table "0 65536 presnap $O $R"
wait_for 10 sh -c "[ \$(cat $S/total_slots) = 16128 ]"
ok "grows at opening"
put 100 600 9
snap scope delta
cp /tmp/want /tmp/at
ship 3 2 "after three growths"

# One that is smaller than the region is refused.
expect_fail -m "the region device is smaller than the region" sh -c "dmsetup reload r --table '$(region 67848)' && dmsetup suspend r && dmsetup resume r && dmsetup message p 0 grow"
resize 131072
dmsetup remove p
resize 67848
expect_fail -m "Region device is smaller than when it was formatted" dmsetup create p --table "0 65536 presnap $O $R"
resize 131072
# A superblock of before the growth is put right.
dd if=/dev/zero of=$R bs=4096 seek=15 count=1 oflag=direct conv=notrunc status=none
dmsetup create p --table "0 65536 presnap $O $R"
sleep 0.2
dmsetup remove p
dd if=$R of=/tmp/a bs=4096 count=1 iflag=direct status=none
dd if=$R of=/tmp/b bs=4096 skip=15 count=1 iflag=direct status=none
cmp /tmp/a /tmp/b || die "the copies of the superblock differ"
presnap check --data $R >/tmp/check || die "check: $(cat /tmp/check)"
ok "a damaged superblock is put right"
