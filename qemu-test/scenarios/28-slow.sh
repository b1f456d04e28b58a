# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# file: qemu-test/oracle.sh:/presnap/oracle.sh
# modprobe: dm-delay
# timeout: 240
# cost: 30
# A region a hundred times slower than the origin, with an image to guard and a snapshot being made: the writers are slowed to what
# the guard takes, nothing is lost or dropped, memory does not grow, and no more bios are held than the writers have in flight.
. /presnap/lib.sh
. /presnap/oracle.sh
load
null_blk replica 40M
null_blk fast 64M 80000 # 80 us
null_blk slow 64M
dmsetup create o --table "0 65536 linear /dev/fast 0" # 32 MiB
dmsetup create r --table "0 131072 delay /dev/slow 0 8 /dev/slow 0 8" # 8 ms
O=/dev/mapper/o R=/dev/mapper/r
oracle
presnap format --origin $O $R --force >/dev/null 2>&1
dmsetup create p --table "0 65536 presnap $O $R"
S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
put 0 1024 7
snap scope image
cp /tmp/want /tmp/image
presnap send p 1 2>/dev/null | presnap receive /dev/replica 2>/dev/null
image 1
kib() { awk '/^(VmallocUsed|Slab):/ {n += $2} END {print n}' /proc/meminfo; }
before=$(kib)
writers 0 4096
dmsetup message p 0 snapshot scope delta >/dev/null
most=0 held=0
for _ in $(seq 40); do
	now=$(kib)
	[ "$now" -le "$most" ] || most=$now
	# All that is in flight on p: four writers, one request of 64 KiB at a time each.
	now=$(awk '{print $9}' "/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/stat")
	[ "$now" -le "$held" ] || held=$now
	sleep 0.1
done
another_round
wait_for 60 state_is 2 sealed
stop "a slow region"
note "at most $held requests in flight, memory $((most - before)) KiB more at most, $(cat "$S/stats/guard_stalls") writes waited for a guard"
[ "$held" -le 4 ] || die "$held requests in flight, of 4 writers"
# What the writers' own requests and the page cache's bookkeeping take is in it, too.
[ $((most - before)) -lt 8192 ] || die "memory grew by $((most - before)) KiB"
eq "$(cat "$S/stats/timeouts") $(cat "$S/stats/snapshots_dropped") $(cat "$S/stats/io_errors")" "0 0 0" "timeouts, dropped, errors"
dd if=/dev/mapper/v of=/tmp/seen bs=1M iflag=direct status=none
cmp /tmp/seen /tmp/image || die "the image has changed"
dmsetup remove v
snap scope delta
cp /tmp/want /tmp/at
presnap send p 2 --base 1 2>/dev/null | presnap receive /dev/replica 2>/dev/null
ship 3 2 "a slow region"
ok "a region that is a hundred times slower"
