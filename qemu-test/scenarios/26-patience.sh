# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# file: qemu-test/oracle.sh:/presnap/oracle.sh
# timeout: 240
# cost: 35
# A region that gets low, is full, fails now and then, is slow, or does not answer at all: the low-water event, `drop_oldest`, retries,
# `guard_timeout_ms`. The origin goes on, and what was sealed stays.
. /presnap/lib.sh
. /presnap/oracle.sh
load
null_blk replica 40M
O=/dev/mapper/o R=/dev/mapper/r
dmsetup create o --table "0 65536 linear $(serial_disk origin) 0" # 32 MiB
dmsetup create r --table "0 17280 linear $(serial_disk region) 0" # 2000 slots
make() { # make [FEATURE...]: the device p on a fresh region
	presnap format --origin $O $R --force >/dev/null 2>&1
	dmsetup create p --table "0 65536 presnap $O $R $*"
	S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
	echo off >"$S/predictor"
}
oracle
make
stat() { cat "$S/stats/$1"; }

# Low water: one event, however often the mark is passed, until a resume.
echo 500 >"$S/low_water_permille"
snap scope image
delete 1
event_begin
put 0 1200 5
snap scope delta
wait_for 10 sh -c "dmsetup status p | grep -q 'low-water$'"
event_end
said "low water: [0-9]* of 2000 slots of the region are free"
delete 2
wait_for 10 sh -c "dmsetup status p | grep -q ' rw -$'"
log_mark
put 0 1200 6
snap scope delta
wait_for 10 sh -c "dmsetup status p | grep -q 'low-water$'"
sleep 0.1
! log_since | grep -q 'low water' || die "the event came twice without a resume"
event_begin
dmsetup suspend p
dmsetup resume p
event_end
sleep 0.1
said "low water:"
ok "low water: an event, once a resume"
echo 0 >"$S/low_water_permille"
wait_for 10 sh -c "dmsetup status p | grep -q ' rw -$'"
delete 3

# The oldest goes, but not one that is held.
echo 1 >"$S/drop_oldest"
put 0 700 1
snap scope delta # 4
put 1000 700 2
snap scope delta # 5
cp /tmp/want /tmp/at
log_mark
event_begin
put 2000 900 3
snap scope delta # 6
event_end
said "the region is full; snapshot 4, the oldest, is deleted"
eq "$(dmsetup message p 0 list | cut -d' ' -f1 | tr '\n' ' ')" "5 6 " "snapshots that are left"
state_is 4 dropped:overflow || die "state: $(dmsetup message p 0 state 4)"
dmsetup message p 0 hold 5
put 3000 900 4
id=$(dmsetup message p 0 snapshot scope delta)
wait_for 30 state_is "$id" dropped:overflow
eq "$(dmsetup message p 0 list | cut -d' ' -f1 | tr '\n' ' ')" "5 6 " "the held one stays, and the one after it"
dmsetup message p 0 release 5
snap scope delta
eq "$(dmsetup message p 0 list | cut -d' ' -f1 | tr '\n' ' ')" "6 $id " "released, it goes"
presnap check --data p >/tmp/check || die "check: $(cat /tmp/check)"
ok "the oldest snapshot makes room"
dmsetup remove p

# Writes to the region that fail once: tried again, and nobody notices.
n=/sys/kernel/config/nullb/once
mkdir $n
echo 64 >$n/size
echo 4096 >$n/blocksize
echo 0 >$n/irqmode
echo 1 >$n/memory_backed
echo 1 >$n/badblocks_once
echo 1 >$n/power
dmsetup reload r --table "0 131072 linear /dev/once 0"
dmsetup suspend r
dmsetup resume r
make
put 0 500 7
snap scope image
presnap send p 1 2>/dev/null | presnap receive /dev/replica 2>/dev/null
put 100 500 8
echo "+1024-65536" >$n/badblocks # all slots, and the index
writers 0 1024
snap scope delta
another_round
stop "writes that fail once"
[ "$(stat io_retries)" -gt 0 ] || die "nothing was tried again"
eq "$(stat io_errors)" 0 "I/O errors"
echo "-1024-65536" >$n/badblocks
snap scope delta
cp /tmp/want /tmp/at
presnap send p 2 --base 1 2>/dev/null | presnap receive /dev/replica 2>/dev/null
ship 3 2 "after errors"
ok "$(stat io_retries) transfers tried again, no error"
dmsetup remove p

# A region that does not answer for a while: the images are given up, the writers go on, and so do snapshots once it answers.
make
put 0 500 7
snap scope image
image 1
echo 300 >"$S/guard_timeout_ms"
writers 0 1024
another_round
stop "before the region is silent"
event_begin
dmsetup suspend --noflush --nolockfs r
timeout 60 dd if=/tmp/noise of=/dev/mapper/p bs=64k seek=200 count=4 oflag=direct conv=notrunc status=none &
writer=$!
wait_for 30 sh -c "dmesg | tail -n 30 | grep -q 'a write has waited too long for the region'"
# It answers again before patience is lost for good, or not: the write goes on in both cases.
wait $writer || die "the write failed: $?"
event_end
said "the images of 1 snapshots are lost: timeout"
said "the region does not answer"
[ "$(stat timeouts)" -gt 0 ] || die "no timeout counted"
dmsetup status v | grep -q Invalid || die "the view of a lost image: $(dmsetup status v)"
expect_fail dd if=/dev/mapper/v of=/dev/null bs=4k count=1 iflag=direct
status | grep -q Invalid || die "status: $(status)"
dmsetup resume r
dmsetup remove v
dmsetup remove p
dd if=$O of=/tmp/is bs=1M iflag=direct status=none
dd if=/tmp/noise of=/tmp/want bs=64k seek=200 count=4 conv=notrunc status=none
cmp /tmp/is /tmp/want || die "the origin is not what was written"
dmsetup create p --table "0 65536 presnap $O $R"
status | grep -q 'full-needed' || die "what a silent region missed is not known: $(status)"
snap scope delta
state_is "$id" 'sealed scope=delta base=0 ' || die "state: $(dmsetup message p 0 state "$id")"
dmsetup remove p
ok "a silent region: images given up, the write went on"

# A freeze with no budget, while the region is silent: writers are let go, the snapshot is not taken; the next one is.
make
put 0 500 7
echo 1500 >"$S/guard_timeout_ms"
log_mark
dmsetup suspend --noflush --nolockfs r
id=$(dmsetup message p 0 snapshot scope delta freeze_budget unlimited)
timeout 60 dd if=/tmp/noise of=/dev/mapper/p bs=4k seek=10 count=4 oflag=direct conv=notrunc status=none || die "the write that was held failed: $?"
dd if=/tmp/noise of=/tmp/want bs=4k seek=10 count=4 conv=notrunc status=none
said "the freeze has waited [0-9]* ms for the region"
dmsetup resume r
wait_for 10 state_is "$id" dropped:timeout
snap scope delta freeze_budget unlimited
cp /tmp/want /tmp/at
presnap send p "$id" --image-device $O 2>/dev/null | presnap receive --force /dev/replica 2>/dev/null
cmp -n 33554432 /dev/replica /tmp/at || die "the snapshot after the silence"
dmsetup remove p
ok "a silent region in a freeze: the writers are let go"

# The same with `on_error fail-writes`: the write fails, the image stays.
make 2 on_error fail-writes
put 0 500 7
snap scope image
image 1
cp /tmp/want /tmp/image
echo 300 >"$S/guard_timeout_ms"
dmsetup suspend --noflush --nolockfs r
expect_fail dd if=/tmp/noise of=/dev/mapper/p bs=64k seek=300 count=1 oflag=direct conv=notrunc status=none
said "a write failed, it had waited [0-9]* ms for the region"
dmsetup resume r
dd if=/dev/mapper/v of=/tmp/seen bs=1M iflag=direct status=none
cmp /tmp/seen /tmp/image || die "the image has changed"
put 4800 16 3
dd if=/dev/mapper/v of=/tmp/seen bs=1M iflag=direct status=none
cmp /tmp/seen /tmp/image || die "the image has changed"
dmsetup remove v
dmsetup remove p
ok "a silent region, on_error fail-writes: the write fails, the image stays"
