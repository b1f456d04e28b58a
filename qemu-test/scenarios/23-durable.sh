# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# modprobe: dm-log-writes ext4
# timeout: 240
# cost: 30
# What is sent to be durable is so on the origin: FLUSH and FUA arrive there, also while the gate is closed or a guard
# holds writers, and a file system that loses power after a sync has what was synced. dm-log-writes below is the
# oracle: it logs what a disk has kept for good. Then discard and write-zeroes under live snapshots.
. /presnap/lib.sh
load
NVME_O=$(serial_disk origin) NVME_R=$(serial_disk region)
O=/dev/mapper/o R=/dev/mapper/r P=/dev/mapper/p
LOG=$(serial_disk origin2) AGAIN=$(serial_disk region2) # sectors of the same size
null_blk replica 80M
N=$(sectors "$NVME_O")
dmsetup create o --table "0 $N log-writes $NVME_O $LOG"
dmsetup create r --table "0 $(sectors "$NVME_R") linear $NVME_R 0"
presnap format --origin $O $R --force >/dev/null 2>&1
dmsetup create p --table "0 $N presnap $O $R"
files() {
	S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
	echo off >"$S/predictor"
}
files
queue() { cat "/sys/block/$(dmsetup info -c --noheadings -o blkdevname "$1")/queue/$2"; }
for limit in write_cache fua; do eq "$(queue p $limit)" "$(queue o $limit)" "$limit"; done
eq "$(queue p write_cache)" "write back" "the origin's cache"

mark() { dmsetup message o 0 mark "$1"; }
# entries: the log, a line an entry: place, in sectors, of its data; sector; sectors; flags; mark
FLUSH=1 FUA=2 DISCARD=4 MARK=8
entries() {
	local size n at=1 i e
	# shellcheck disable=SC2046
	set -- $(dd if="$LOG" bs=4096 count=1 iflag=direct status=none | od -An -v -t u8 -N 32 -w32)
	n=$3 size=$(($4 % 4294967296))
	for ((i = 0; i < n; i++)); do
		# shellcheck disable=SC2046
		e=($(dd if="$LOG" bs="$size" skip=$at count=1 status=none | od -An -v -t u8 -N 32 -w32))
		if [ $((e[2] & MARK)) != 0 ]; then
			echo "$((at + 1)) 0 0 ${e[2]} $(dd if="$LOG" bs=1 skip=$((at * size + 32)) count="${e[3]}" status=none)"
		else
			echo "$((at + 1)) ${e[*]:0:3} -"
		fi
		at=$((at + 1))
		[ $((e[2] & DISCARD)) != 0 ] || at=$((at + e[1]))
	done >/tmp/entries
	echo "$size" >/tmp/size
}
# between A B: the entries between two marks
between() { awk -v a="$1" -v b="$2" '$5 == b {exit} on; $5 == a {on = 1}' /tmp/entries; }
state_is() { dmsetup message p 0 state "$1" | grep -q "^$1 $2"; }
snap() {
	id=$(dmsetup message p 0 snapshot "$@")
	wait_for 30 state_is "$id" sealed
}
# write BLOCK: a block of noise, durable when it returns
write() { dd if=/tmp/noise of=$P bs=4k count=1 skip="$1" seek="$1" oflag=direct,dsync conv=notrunc status=none; }
flush() { timeout 10 dd if=/dev/null of=$P count=0 conv=notrunc,fsync status=none; }
dd if=/dev/urandom of=/tmp/noise bs=1M count=4 status=none

# 1. A write with O_DSYNC; one without, and a flush.
mark a1
write 1
mark a2
dd if=/tmp/noise of=$P bs=4k count=1 seek=2 oflag=direct conv=notrunc status=none
mark a3
flush
mark a4

# 2. The gate is closed, because the region does not answer: a flush and a read pass, a write waits and then is durable.
dd if=/tmp/noise of=$P bs=64k count=16 oflag=direct conv=notrunc status=none
dd if=$O of=/tmp/at bs=1M iflag=direct status=none
mark b1
dmsetup suspend r
id=$(dmsetup message p 0 snapshot freeze_budget unlimited scope image)
wait_for 10 state_is "$id" freezing
write 300 &
writer=$!
# It is held: in flight here, and without a number.
op=$(cat "$S/op")
wait_for 10 grep -q ' 1$' "$S/../inflight"
flush || die "a flush does not end while the gate is closed"
timeout 10 dd if=$P of=/dev/null bs=4k count=1 iflag=direct status=none || die "a read does not end while the gate is closed"
state_is "$id" freezing || die "the gate has opened: the test tests nothing"
eq "$(cat "$S/op")" "$op" "operations while the gate is closed"
mark b2
dmsetup resume r
wait $writer || die "the held write failed"
mark b3
wait_for 30 state_is "$id" sealed

# 3. A guard holds a write.
dmsetup create v --readonly --table "0 $N presnap-image $P $id"
mark c1
dmsetup suspend r
stalls=$(cat "$S/stats/guard_stalls")
write 500 &
writer=$!
wait_for 10 sh -c "[ \$(cat $S/stats/guard_stalls) -gt $stalls ]"
flush || die "a flush does not end under a guard"
mark c2
dmsetup resume r
wait $writer || die "the guarded write failed"
mark c3
cmp /dev/mapper/v /tmp/at || die "the image has what was written after T0"
dmsetup remove v
dmsetup message p 0 delete "$id"
wait_for 10 sh -c '[ "$(dmsetup message p 0 list)" = - ]'

# 4. A file system, snapshots, a sync; what comes after it is not in the log when power fails.
mkfs.ext4 -q -E lazy_itable_init=0,nodiscard -O ^metadata_csum -N 64 -J size=4 $P
mkdir /tmp/m
mount $P /tmp/m
cp /tmp/noise /tmp/m/one
snap scope image
dd if=/tmp/noise of=/tmp/m/one bs=64k count=20 seek=7 conv=notrunc status=none
dd if=/tmp/noise of=/tmp/m/two bs=64k count=9 status=none
sync -f /tmp/m/two
cp /tmp/m/one /tmp/one
mark power
dd if=/dev/zero of=/tmp/m/one bs=64k count=4 conv=notrunc status=none
umount /tmp/m
dmsetup message p 0 delete "$id"
dmsetup remove p
dmsetup remove o
entries

# How the sequence of entries shows that block $3 is durable between marks $1 and $2: its write has FUA, or a flush is behind it.
durable() {
	between "$1" "$2" >/tmp/between
	awk -v s=$(($3 * 4096 / $(cat /tmp/size))) '
		$2 == s && $3 > 0 && int($4 / 2) % 2 {fua = 1}
		$2 == s && $3 > 0 {seen = 1}
		seen && $4 % 2 {flushed = 1}
		END {exit !(fua || flushed)}' /tmp/between || die "block $3 is not durable between $1 and $2: $(cat /tmp/between)"
}
flushed() { between "$1" "$2" | awk '$4 % 2 {n++} END {exit !n}' || die "no flush between $1 and $2: $(between "$1" "$2")"; }
durable a1 a2 1
eq "$(between a2 a3)" "" "what a write without a flush leaves in the log"
durable a3 a4 2
ok "FLUSH and FUA arrive"
flushed b1 b2
between b1 b2 | awk -v s=$((300 * 4096 / $(cat /tmp/size))) '$2 == s {exit 1}' || die "the held write has reached the origin"
durable b2 b3 300
flushed c1 c2
between c1 c2 | awk -v s=$((500 * 4096 / $(cat /tmp/size))) '$2 == s {exit 1}' || die "the guarded write has reached the origin before the region had its block"
durable c2 c3 500
ok "with the gate closed, and under a guard"

# Power fails at the mark: what the log has up to there is all that the disk has.
size=$(cat /tmp/size)
awk '$5 == "power" {exit} $3 > 0 && $5 == "-" {print}' /tmp/entries >/tmp/replay
note "$(wc -l </tmp/replay) writes to replay"
while read -r at sector count flags _; do
	[ $((flags & DISCARD)) = 0 ] || continue
	dd if="$LOG" of="$AGAIN" bs=65536 iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc status=none \
		skip=$((at * size)) count=$((count * size)) seek=$((sector * size))
done </tmp/replay
mount "$AGAIN" /tmp/m
cmp /tmp/m/one /tmp/one || die "after the power failed a synced file has other content"
cmp -n $((9 * 65536)) /tmp/m/two /tmp/noise || die "after the power failed a synced file has other content"
umount /tmp/m
e2fsck -fn "$AGAIN" >/tmp/fsck 2>&1 || { cat /tmp/fsck; die "e2fsck"; }
ok "power fails after a sync"

# 5. Discard and write-zeroes: the image keeps what was there, the origin does it, the delta says so.
dd if=/tmp/noise of="$NVME_O" bs=1M oflag=direct conv=notrunc status=none
dd if=/tmp/noise of="$NVME_O" bs=1M seek=8 oflag=direct conv=notrunc status=none
O=$NVME_O
presnap format --origin "$O" $R --force >/dev/null 2>&1
dmsetup create p --table "0 $N presnap $O $R 2 scope image"
files
snap
dmsetup create v --readonly --table "0 $N presnap-image $P $id"
presnap send p "$id" 2>/dev/null | presnap receive /dev/replica 2>/dev/null
dd if="$O" of=/tmp/at bs=1M iflag=direct status=none
stat() { awk -v f="$1" '{print $f}' "/sys/block/$(basename "$O")/stat"; }
discarded=$(stat 14)
blkdiscard -o 1048576 -l 2097152 $P
[ $(($(stat 14) - discarded)) -ge 4096 ] || die "the origin has discarded $(($(stat 14) - discarded)) sectors of 4096"
blkdiscard -z -o 8388608 -l 1048576 $P
cmp -n 1048576 -i 8388608:0 "$O" /dev/zero || die "the origin is not zeroed"
cmp -n 2097152 -i 1048576 "$O" $P || die "the device does not read as the origin where it was discarded"
cmp /dev/mapper/v /tmp/at || die "the image after discard and write-zeroes"
dd if="$O" of=/tmp/is bs=1M iflag=direct status=none
for range in '0 1048576' '3145728 5242880' '9437184 57671680'; do
	cmp -n "${range#* }" -i "${range% *}" /tmp/is /tmp/at || die "more was discarded or zeroed than was asked for"
done
first=$id
snap scope delta
state_is "$id" 'sealed .* delta_blocks=768 ' || die "the delta: $(dmsetup message p 0 state "$id")"
dd if=/tmp/noise of=$P bs=64k count=4 seek=128 oflag=direct conv=notrunc status=none
presnap send p "$id" --base "$first" 2>/dev/null | presnap receive /dev/replica 2>/dev/null
cmp -n $((N * 512)) /dev/replica /tmp/is || die "the replica is not what the origin was"
cmp /dev/mapper/v /tmp/at || die "image $first through $id"
dmsetup remove v
dmsetup remove p
ok "discard and write-zeroes under snapshots"
