# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 96M:origin 128M:region
# file: qemu-test/oracle.sh:/presnap/oracle.sh
# timeout: 240
# cost: 30
# An origin that grows while writers are about: snapshots from before and after, deltas onto a replica that is enlarged, a file system
# that grows on it, settings that stay. Not under a view, not smaller, not at a cold opening, and not when preresume cannot.
. /presnap/lib.sh
. /presnap/oracle.sh
load
# 32, 48 and 64 MiB; the replica begins with the first.
A=65536 B=98304 C=131072
disk() { # disk NAME SERIAL SECTORS: the device NAME of so many sectors, made or resized
	local line="0 $3 linear $(serial_disk "$2") 0"
	if [ -e "/dev/mapper/$1" ]; then
		dmsetup reload "$1" --table "$line"
		dmsetup suspend "$1"
		dmsetup resume "$1"
	else
		dmsetup create "$1" --table "$line"
	fi
}
disk o origin $A
null_blk copy 96M
copy() { # copy SECTORS: the replica has so many
	local line="0 $1 linear /dev/copy 0"
	if [ -e /dev/mapper/c ]; then
		dmsetup reload c --table "$line"
		dmsetup suspend c
		dmsetup resume c
	else
		dmsetup create c --table "$line"
	fi
}
copy $A
O=/dev/mapper/o R=$(serial_disk region)
oracle
presnap format --origin $O "$R" --force >/dev/null 2>&1
table() { echo "0 $1 presnap $O $R 2 on_error fail-writes"; }
dmsetup create p --table "$(table $A)"
S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
size() { blockdev --getsz /dev/mapper/p; }
receive() { presnap receive --record /tmp/record /dev/mapper/c; }
ship() { # ship ID BASE SECTORS WHAT: the delta, applied to the replica, makes it what the origin was at T0
	presnap send p "$1" --base "$2" 2>/dev/null | receive >/dev/null
	cmp -n $(($3 * 512)) /dev/mapper/c /tmp/at || die "$4: the replica is not the origin at T0($1)"
	ok "$4: delta $1 is whole"
}
longer() { # longer SECTORS: of what the origin has beyond its end, the oracle has the same
	dd if=$O of=/tmp/want bs=512 skip="$(($(stat -c %s /tmp/want) / 512))" seek="$(($(stat -c %s /tmp/want) / 512))" \
		count=$(($1 - $(stat -c %s /tmp/want) / 512)) iflag=direct conv=notrunc status=none
}

eq "$(presnap grow --origin p)" "the origin has not grown: $A sectors" "nothing to grow"
put 0 512 7
snap scope image
cp /tmp/want /tmp/image
cp /tmp/want /tmp/at
presnap send p 1 2>/dev/null | receive >/dev/null
echo 77 >"$S/low_water_permille"
dmsetup message p 0 hold 1
snapshots=$(cat "$S/stats/snapshots")

# Not beyond its end, not under a view, not smaller.
expect_fail -m "Origin device is smaller than the target" dmsetup reload p --table "$(table $B)"
disk o origin $B
image 1
expect_fail -m "Close the views first" dmsetup reload p --table "$(table $B)"
# A view that comes when the table is loaded already: nothing has happened, and the table before goes on.
dmsetup remove v
dmsetup reload p --table "$(table $B)"
eq "$(dmsetup status --inactive p 2>/dev/null | cut -d' ' -f4)" growing "status of the table that waits"
image 1
expect_fail -m "the origin does not grow: Close the views first" dmsetup resume p
dmsetup reload p --table "$(table $A)"
dmsetup resume p
eq "$(size)" $A "size after a growth that was refused"
dmsetup remove v
put 100 50 3
expect_fail -m "does not shrink" dmsetup reload p --table "$(table $((A / 2)))"
ok "what is refused changes nothing"

# Under writers, by the command.
writers 256 1024
event_begin
eq "$(presnap grow --origin p)" "the origin has $B sectors now, $A before" growth
event_end
said "the origin has grown to $B sectors"
eq "$(size)" $B size
another_round
# Its new part is written, too.
dd if=/tmp/noise of=/dev/mapper/p bs=1M seek=40 count=4 oflag=direct status=none
touch /tmp/stop
wait "${pids[@]}"
[ ! -e /tmp/write-failed ] || die "writes failed: $(cat /tmp/write-failed)"
longer $B
dd if=/tmp/noise of=/tmp/want bs=1M seek=40 count=4 conv=notrunc status=none
cmp $O /tmp/want || die "the origin is not what was written"
ok "grows under writers; no write failed, the origin is what was written"
eq "$(cat "$S/low_water_permille")" 77 "a setting"
eq "$(cat "$S/stats/snapshots")" "$snapshots" "a total"
case "$(dmsetup table p)" in *"on_error fail-writes") ;; *) die "table: $(dmsetup table p)" ;; esac
expect_fail -m "the snapshot is held" dmsetup message p 0 delete 1
dmsetup message p 0 release 1

# The image from before is what it was; the next delta has all that is new.
dmsetup create v --readonly --table "0 $A presnap-image /dev/mapper/p 1"
cmp /dev/mapper/v /tmp/image || die "the image of before has changed"
dmsetup remove v
expect_fail -m "The image is smaller than the target" dmsetup create v --readonly --table "0 $B presnap-image /dev/mapper/p 1"
presnap image p 1 v >/dev/null
cmp /dev/mapper/v /tmp/image || die "the image of before, made by the command"
presnap image --remove v
ok "an image from before, as long as it was"
snap scope image
cp /tmp/want /tmp/at
new=$(((B - A) / 8))
[ "$(dmsetup message p 0 state 2 | sed 's/.* delta_blocks=\([0-9]*\).*/\1/')" -ge $new ] || die "delta: $(dmsetup message p 0 state 2)"
presnap send p 2 --base 1 2>/dev/null >/tmp/stream
expect_fail -m "enlarge the replica first" sh -c "presnap receive --record /tmp/record /dev/mapper/c </tmp/stream"
copy $B
ship 2 1 $B "after the growth, onto a replica that was enlarged"
dmsetup create v --readonly --table "0 $B presnap-image /dev/mapper/p 2"
cmp /dev/mapper/v /tmp/at || die "the image of after is not the origin"
dmsetup remove v
delete 1

# Closed and opened again: by its own length only.
dmsetup remove p
presnap check --data "$R" >/tmp/check || die "check: $(cat /tmp/check)"
disk o origin $C
expect_fail -m "Region belongs to a smaller origin: load that length, resume, then reload" dmsetup create p --table "$(table $C)"
expect_fail -m "Region belongs to a larger origin: it does not shrink" dmsetup create p --table "$(table $A)"
dmsetup create p --table "$(table $B)"
ok "a cold opening has the length of the region"

# With a file system on it, which is grown then; with a snapshot under way, which is dropped.
mkfs.ext4 -q -b 4096 -E nodiscard /dev/mapper/p
mkdir -p /mnt/p
mount /dev/mapper/p /mnt/p
cp /tmp/noise /mnt/p/noise
sync
snap
presnap send p "$id" --base 2 2>/dev/null | receive >/dev/null
delete 2
id=$(dmsetup message p 0 snapshot within 600000)
dmsetup reload p --table "$(table $C)"
dmsetup suspend p
dmsetup resume p
eq "$(size)" $C "size of the mounted one"
state_is "$id" dropped:closed || die "a snapshot under way: $(dmsetup message p 0 state "$id")"
resize2fs /dev/mapper/p >/tmp/resize 2>&1 || die "resize2fs: $(cat /tmp/resize)"
cp /tmp/noise /mnt/p/more
cp /tmp/noise /mnt/p/yet-more
umount /mnt/p
base=$(dmsetup message p 0 list | tail -n 1 | cut -d' ' -f1)
snap
[ "$id" -gt "$base" ]
dd if=$O of=/tmp/at bs=1M iflag=direct status=none
copy $C
ship "$id" "$base" $C "a file system that was grown"
e2fsck -fn /dev/mapper/c >/tmp/fsck 2>&1 || die "e2fsck: $(cat /tmp/fsck)"
mount -o ro,noload /dev/mapper/c /mnt/p
cmp /mnt/p/more /tmp/noise || die "a file on the replica"
umount /mnt/p
ok "a file system grows, on the replica too"
dmsetup remove p
presnap check --data "$R" >/tmp/check || die "check: $(cat /tmp/check)"
